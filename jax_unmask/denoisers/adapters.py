"""Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685) of a denoiser's linear maps.

An adapted map is W x + B A x. The adapters are leaves of their own beside the kernels, `lora_a`
[layers, in, rank] and `lora_b` [layers, rank, out], so a parameter tree with them in it is a tree
that the denoiser takes, and one without them is the denoiser as it was.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array

from jax_unmask.denoisers.config import DenoiserConfig
from jax_unmask.denoisers.transformer import Params, abstract_params
from jax_unmask.settings import Settings, setting


@dataclasses.dataclass(frozen=True)
class LoraSettings(Settings):
    """Low-rank adapters that are trained instead of the weights, and merged in when exported."""

    rank: int = setting(0, "Inner width of the adapters; 0 trains all weights instead.", ge=0)
    targets: tuple[str, ...] = setting(
        (), "Linear maps to adapt, as in ('query', 'value'); empty for all of attention and MLP."
    )
    scale: float = setting(
        1.0, "Standard deviation of lora_a's output for an input of order 1.", gt=0, le=1e6
    )


def init_adapters(
    config: DenoiserConfig,
    key: Array,
    rank: int,
    targets: Sequence[str] = LoraSettings.targets,
    scale: float = LoraSettings.scale,
) -> Params:
    """Adapters that change nothing yet: `lora_b` is zero.

    Args:
        config: the architecture.
        key: typed PRNG key.
        rank: see `LoraSettings`, as are `targets` (experts are not among them) and `scale` (which
            stands for the paper's alpha / rank: Adam takes equal steps whatever the gradient's
            scale).

    Returns:
        A nested dict with float32 leaves, whatever the type of the weights.

    Raises:
        ValueError: no rank, or a target that the denoiser does not have.
    """
    if rank < 1:
        raise ValueError(f"rank={rank} must be at least 1")
    kernels = {
        path[:-1]: leaf
        for path, leaf in flatten_dict(abstract_params(config)).items()
        if path[-1] == "kernel"
    }
    known = {path[-1] for path in kernels}
    for target in targets:
        if target not in known:
            raise ValueError(
                f"target {target!r} is no linear map of a denoiser of family {config.family!r}; "
                f"it has {', '.join(sorted(known))}"
            )
    leaves: dict[tuple[str, ...], Array] = {}
    chosen = sorted(path for path in kernels if not targets or path[-1] in targets)
    for number, path in enumerate(chosen):
        *layers, features_in, features_out = kernels[path].shape
        draw = jax.random.normal(
            jax.random.fold_in(key, number), (*layers, features_in, rank), jnp.float32
        )
        leaves[*path, "lora_a"] = draw * (scale / features_in**0.5)
        leaves[*path, "lora_b"] = jnp.zeros((*layers, rank, features_out), jnp.float32)
    return unflatten_dict(leaves)


def with_adapters(params: Params, adapters: Params) -> Params:
    """Parameters with adapters among them, which win where both trees have a leaf.

    Nothing is copied.
    """
    return unflatten_dict(flatten_dict(params) | flatten_dict(adapters))


def merge_adapters(params: Params, adapters: Params) -> Params:
    """Parameters of a plain denoiser equal to the adapted one: W + A B."""
    flat, parts = flatten_dict(params), flatten_dict(adapters)
    for path in {path[:-1] for path in parts}:
        kernel = flat[*path, "kernel"]
        product = jnp.matmul(
            parts[*path, "lora_a"], parts[*path, "lora_b"], precision=jax.lax.Precision.HIGHEST
        )
        flat[*path, "kernel"] = (kernel.astype(jnp.float32) + product).astype(kernel.dtype)
    return unflatten_dict(flat)
