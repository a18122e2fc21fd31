"""Mixture of experts: each token goes through a few of many gated MLPs, chosen by a router.

Exact: no expert has a capacity, so no token is dropped and a row's result does not depend on the
rows beside it. Shapes are static: the (token, expert) pairs are sorted by expert and multiplied as
groups of varying size (`jax.lax.ragged_dot`).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from jax_unmask.denoisers.config import DenoiserConfig, ExpertsConfig
from jax_unmask.denoisers.quantization import is_quantized, ragged_matmul
from jax_unmask.runtime.mesh import active_over, on_each_device, spec

_expert_init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", batch_axis=(0,))
_NAMES = ((None, "embed", "mlp"), (None, "embed", "mlp"), (None, "mlp", "embed"))
"""Names of the dimensions of gate, up and down, see `runtime.mesh.LOGICAL`."""


class Experts(nn.Module):
    """The mixture of experts of one layer, without the residual connection."""

    config: DenoiserConfig

    @nn.compact
    def __call__(self, x: Float[Array, "T D"]) -> Float[Array, "T D"]:
        """Sends T tokens through their experts."""
        cfg = self.config
        moe = cfg.experts
        if moe is None:
            raise ValueError("the config has no experts")
        width, count = cfg.hidden_size, moe.num_experts

        def param(name: str, init: Any, *shape: int) -> Any:
            return self.param(name, init, shape, cfg.param_dtype)

        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
        router, bias = param("router", init, width, count), None
        if moe.has_bias:
            bias = param("router_bias", nn.initializers.zeros, count).astype(jnp.float32)
            bias = jax.lax.stop_gradient(bias)
        router_dtype = jnp.float32 if moe.router_in_float32 else cfg.dtype
        logits = jnp.dot(
            x.astype(router_dtype),
            router.astype(router_dtype),
            precision="highest" if moe.router_in_float32 else None,
        )
        chosen, weights = route(logits, bias, moe)

        # The layer's output joins the residual stream; see `DenoiserBlock` for the scale.
        out_init = nn.initializers.variance_scaling(
            1.0 / (2 * cfg.num_layers), "fan_in", "normal", batch_axis=(0,)
        )
        kernels = (
            param("gate", _expert_init, count, width, moe.size),
            param("up", _expert_init, count, width, moe.size),
            param("down", out_init, count, moe.size, width),
        )
        return _spread(x, chosen, weights, kernels).astype(cfg.dtype)


def _spread(
    x: Float[Array, "T D"],
    chosen: Int[Array, "T k"],
    weights: Float[Array, "T k"],
    kernels: tuple[Any, Any, Any],
) -> Float[Array, "T D"]:
    """`_mix`; on a mesh each device sends its own tokens through its shard of every expert."""
    mesh = active_over(x.shape[0])
    if mesh is None:
        return _mix(x, chosen, weights, kernels)

    def of_shard(x: Array, chosen: Array, weights: Array, *kernels: Any) -> Array:
        whole = (_whole(kernel, names) for kernel, names in zip(kernels, _NAMES, strict=True))
        return jax.lax.psum(_mix(x, chosen, weights, tuple(whole)), "tensor")

    rows = spec("batch")
    parts = tuple(_shard_specs(*pair) for pair in zip(kernels, _NAMES, strict=True))
    split = on_each_device(of_shard, (rows, rows, rows, *parts), rows)
    return split(x, chosen, weights, *kernels)


def _shard_specs(kernel: Any, names: tuple[str | None, ...]) -> Any:
    """Specs of a stack of matrices; scales of a quantised one are sharded along outputs only."""
    if not is_quantized(kernel):
        return spec(*names)
    outputs = None if names[-1] == "embed" else names[-1]
    return jax.tree.map(
        lambda leaf: spec(*names) if leaf is kernel.qvalue else spec(None, None, outputs), kernel
    )


def _whole(kernel: Any, names: tuple[str | None, ...]) -> Any:
    """A stack of matrices whole along the fsdp axis."""
    axis = names.index("embed")

    def gather(leaf: Array) -> Array:
        return jax.lax.all_gather(leaf, "fsdp", axis=axis, tiled=True)

    return kernel.replace(qvalue=gather(kernel.qvalue)) if is_quantized(kernel) else gather(kernel)


def _mix(
    x: Float[Array, "T D"],
    chosen: Int[Array, "T k"],
    weights: Float[Array, "T k"],
    kernels: tuple[Any, Any, Any],
) -> Float[Array, "T D"]:
    """`mix_experts` of gated MLPs with kernels gate and up [E, D, F], and down [E, F, D]."""
    gate, up, down = kernels

    def gated_mlp(x: Array, sizes: Array, experts: Array) -> Array:
        inner = nn.silu(ragged_matmul(x, gate, sizes, experts))
        inner = inner * ragged_matmul(x, up, sizes, experts)
        return ragged_matmul(inner, down, sizes, experts)

    return mix_experts(x, chosen, weights, gate.shape[0], gated_mlp)


def mix_experts(
    x: Float[Array, "T D"],
    chosen: Int[Array, "T k"],
    weights: Float[Array, "T k"],
    count: int,
    apply: Callable[[Array, Array, Array], Array],
) -> Float[Array, "T D"]:
    """Weighted sums of the outputs of each token's experts, of which there are E = `count`.

    `apply` maps (rows [T * k, D] sorted by expert, rows of each expert [E], expert of each row
    [T * k]) to outputs [T * k, D].
    """
    per_token = chosen.shape[1]
    # One row per (token, expert) pair, those of an expert beside each other.
    pairs = chosen.reshape(-1)
    order = jnp.argsort(pairs, stable=True)
    sizes = jnp.bincount(pairs, length=count).astype(jnp.int32)
    grouped = jnp.take(x, order // per_token, axis=0)
    out = apply(grouped, sizes, jnp.take(pairs, order))
    # Back in the order of the tokens, so that a token's experts are added in a fixed order.
    out = jnp.take(out, jnp.argsort(order), axis=0).reshape(-1, per_token, x.shape[-1])
    return (out * weights[..., None]).sum(axis=1)


def route(
    logits: Float[Array, "T E"], bias: Float[Array, " E"] | None, moe: ExpertsConfig
) -> tuple[Int[Array, "T k"], Float[Array, "T k"]]:
    """Chooses each token's experts.

    Covers the published routers: softmax scores taken as they are (LLaDA-MoE) or normalised over
    the chosen ones (SDAR-MoE, as in Qwen3-MoE), and sigmoid scores with a load-balancing bias and
    groups of experts (LLaDA2, after DeepSeek-V3, arXiv 2412.19437).

    Returns:
        (experts, weights), best first; the weights are float32.
    """
    logits = logits.astype(jnp.float32)
    scores = jax.nn.softmax(logits) if moe.score == "softmax" else jax.nn.sigmoid(logits)
    biased = scores if bias is None else scores + bias
    ranked = biased
    if moe.groups_kept < moe.num_groups:
        groups = biased.reshape(-1, moe.num_groups, moe.num_experts // moe.num_groups)
        best = jax.lax.top_k(groups, min(2, groups.shape[-1]))[0].sum(axis=-1)
        kept = jax.lax.top_k(best, moe.groups_kept)[1]
        is_kept = jax.nn.one_hot(kept, moe.num_groups, dtype=bool).any(axis=-2)
        ranked = jnp.where(is_kept[..., None], groups, -jnp.inf).reshape(biased.shape)
    chosen = jax.lax.top_k(ranked, moe.per_token)[1]
    weights = jnp.take_along_axis(biased if moe.weigh_biased else scores, chosen, axis=-1)
    if moe.normalise:
        weights = weights / (weights.sum(axis=-1, keepdims=True) + 1e-20)
    return chosen, weights * moe.scale
