"""The architecture of a denoiser: sizes, numerics and special tokens."""

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike


@dataclasses.dataclass(frozen=True)
class ExpertsConfig:
    """A mixture of experts in place of a layer's MLP (see `jax_unmask.denoisers.moe`)."""

    num_experts: int
    per_token: int  # Experts that each token goes to.
    size: int  # Intermediate width of an expert.
    layers: tuple[bool, ...]  # Which layers have experts; the others have the dense MLP.
    shared_size: int = 0  # Intermediate width of an expert that gets every token; 0 for none.
    score: Literal["softmax", "sigmoid"] = "softmax"  # Of the router's logits, over all experts.
    # A bias per expert is added to the scores. It is a buffer that balances load in pre-training.
    has_bias: bool = False
    weigh_biased: bool = False  # The bias counts in the weights too, not in choosing alone.
    normalise: bool = False  # The weights of the chosen experts are divided by their sum.
    scale: float = 1.0  # Factor on the weights.
    num_groups: int = 1  # The experts form this many groups of consecutive ones, ...
    # ... of which only this many are chosen from, by the sum of their two best scores.
    groups_kept: int = 1
    router_in_float32: bool = False  # Whatever the type of the computation.

    def __post_init__(self) -> None:
        _check_kinds(self)
        check_sizes(self, "num_experts", "per_token", "size", "num_groups", "groups_kept")
        if self.num_experts % self.num_groups:
            raise ValueError(
                f"num_experts={self.num_experts} is not a multiple of num_groups={self.num_groups}"
            )
        if self.groups_kept > self.num_groups:
            raise ValueError(
                f"groups_kept={self.groups_kept} is more than num_groups={self.num_groups}"
            )
        reachable = self.num_experts // self.num_groups * self.groups_kept
        if self.per_token > reachable:
            raise ValueError(
                f"per_token={self.per_token} experts cannot be chosen from the {reachable} of "
                f"groups_kept={self.groups_kept} groups"
            )
        if self.score not in ("softmax", "sigmoid"):
            raise ValueError(f"score={self.score!r} must be 'softmax' or 'sigmoid'")


class LayerRun(NamedTuple):
    """Layers `start` to `stop` (excluded), all of one kind; their parameters are stacked."""

    name: str
    start: int
    stop: int
    has_experts: bool


@dataclasses.dataclass(frozen=True)
class DenoiserConfig:
    """Static description of a denoiser; hashable, so it can be a static argument of `jax.jit`.

    A family (a published checkpoint format) is a mapping from its own `config.json` to these
    fields; the transformer itself reads nothing else.
    """

    family: str  # Checkpoint format that the weights are read from and written to, e.g. "llada".
    vocab_size: int  # Width V of the logits, which is also the number of embedding rows.
    hidden_size: int  # Width D of the residual stream.
    num_layers: int
    num_heads: int  # Of queries.
    num_kv_heads: int  # Of keys and values; each serves num_heads / num_kv_heads query heads.
    head_dim: int  # Even, because rotary embeddings turn pairs.
    intermediate_size: int  # Width of the gated MLP.
    rope_theta: float  # Base of the rotary frequencies.
    norm_eps: float  # Of every RMSNorm.
    max_length: int  # Longest sequence (prompt and canvas) that the model was made for.
    tie_embeddings: bool  # The output projection is the embedding table.
    mask_token_id: int
    eos_token_id: int  # Ends a response.
    pad_token_id: int  # Fills the left of shorter prompts (never attended).
    bos_token_id: int | None = None  # Starts a text, if the family has one.
    dtype: DTypeLike = jnp.float32  # Of the computation; norms, softmax and logits are float32.
    param_dtype: DTypeLike = jnp.float32
    qkv_bias: bool = False  # The query, key and value projections have biases; ...
    out_bias: bool = False  # ... so has the projection after attention.
    qk_norm: bool = False  # Queries and keys are normalised per head before they are rotated.
    rotary_dim: int | None = None  # Leading features of a head that are rotated; None for all.
    # Otherwise cosines and sines are rounded to the compute type, and the products are in it.
    rotary_in_float32: bool = True
    # Norms multiply by their scale in float32 and round once; otherwise they round before it.
    norm_scale_in_float32: bool = False
    # The output projection at position i scores token i + 1, as in models made from causal ones.
    # `Denoiser` undoes it: hidden states and logits at position i are always those of token i.
    logits_shift: bool = False
    # Block-causal attention: a position attends to its block of this many positions, counted from
    # the start of the text, and to all blocks before. None for full attention.
    attention_block: int | None = None
    experts: ExpertsConfig | None = None  # None for dense layers only.
    # Attention in a fused kernel of the device (`attention.fuses`), which rounds otherwise. Not
    # part of what a denoiser is: rollouts set it, and training where the kernel has gradients.
    fused_attention: bool = dataclasses.field(default=False, repr=False)

    def __post_init__(self) -> None:
        _check_kinds(self)
        check_sizes(self, "vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads")
        check_sizes(self, "head_dim", "intermediate_size", "max_length")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} is not a multiple of num_kv_heads="
                f"{self.num_kv_heads}; every key head serves the same number of query heads"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"head_dim={self.head_dim} must be even: rotary embeddings turn pairs of features"
            )
        if self.rotary_dim is not None:
            check_sizes(self, "rotary_dim")
            if self.rotary_dim > self.head_dim or self.rotary_dim % 2:
                raise ValueError(
                    f"rotary_dim={self.rotary_dim} must be even and between 2 and "
                    f"head_dim={self.head_dim}"
                )
        if self.attention_block is not None:
            check_sizes(self, "attention_block")
        if self.experts is not None and len(self.experts.layers) != self.num_layers:
            raise ValueError(
                f"experts.layers={self.experts.layers} speaks of {len(self.experts.layers)} "
                f"layers, num_layers={self.num_layers}"
            )
        for name in ("rope_theta", "norm_eps"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be positive and finite")
        for name in ("mask_token_id", "eos_token_id", "pad_token_id", "bos_token_id"):
            token = getattr(self, name)
            if token is None and name == "bos_token_id":
                continue
            _check_int(name, token)
            if not 0 <= token < self.vocab_size:
                raise ValueError(
                    f"{name}={token} is not in the vocabulary of vocab_size={self.vocab_size} "
                    "tokens"
                )
            if token == self.mask_token_id and name != "mask_token_id":
                raise ValueError(
                    f"{name}={token} is also mask_token_id; a text that holds it could not be told "
                    "from an unfinished one"
                )
        for name in ("dtype", "param_dtype"):
            # One canonical object per type, so that equal configs hash alike ("bfloat16",
            # jnp.bfloat16 and np.dtype("bfloat16") are three different keys otherwise).
            dtype = np.dtype(getattr(self, name))
            if not jnp.issubdtype(dtype, jnp.floating):
                raise ValueError(f"{name}={dtype} must be a floating type such as float32")
            object.__setattr__(self, name, dtype)

    @property
    def layer_runs(self) -> tuple[LayerRun, ...]:
        """The layers as runs of equal ones; most models are a single run."""
        kinds = (False,) * self.num_layers if self.experts is None else self.experts.layers
        starts = [i for i in range(self.num_layers) if i == 0 or kinds[i] != kinds[i - 1]]
        ends = [*starts[1:], self.num_layers]
        return tuple(
            LayerRun("layers" if len(starts) == 1 else f"layers_{start}", start, end, kinds[start])
            for start, end in zip(starts, ends, strict=True)
        )


def _check_kinds(config: Any) -> None:
    """Raises ValueError unless numbers and flags are such, as in `config.json` they may not be."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.type is int:
            _check_int(field.name, value)
        elif field.type is bool and not isinstance(value, bool):
            raise ValueError(f"{field.name}={value!r} must be true or false")
        elif field.type is float and (
            isinstance(value, bool) or not isinstance(value, int | float) or abs(value) >= 1e38
        ):
            raise ValueError(f"{field.name}={value!r} must be a finite number of 32 bits")


def check_sizes(config: object, *names: str) -> None:
    """Raises ValueError unless these fields are whole numbers above 0."""
    for name in names:
        value = getattr(config, name)
        _check_int(name, value)
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")


def _check_int(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name}={value!r} must be an integer")
    if not -(2**31) <= value < 2**31:
        raise ValueError(f"{name}={value} must be a number of 32 bits")
