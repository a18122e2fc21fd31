"""The denoiser: one transformer for all families, described by a `DenoiserConfig`."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jax_unmask.denoisers.attention import (
    CachedKeys,
    Copies,
    attention,
    attention_in_copies,
    attention_with_cache,
    fuses,
    rotary_table,
    rotate,
    takes_kernel,
)
from jax_unmask.denoisers.cache import KeyValueCache, Put
from jax_unmask.denoisers.config import DenoiserConfig
from jax_unmask.denoisers.moe import Experts
from jax_unmask.denoisers.positions import (
    Bounds,
    Leading,
    block_causal,
    default_positions,
    unshift,
    window_of,
)
from jax_unmask.denoisers.quantization import matmul
from jax_unmask.denoisers.sharding import gathered, linear_axes, look_up
from jax_unmask.runtime.mesh import constrain
from jax_unmask.settings import setting

Params = dict[str, Any]
Table = tuple[Float[Array, "#B S 1 d2"], Float[Array, "#B S 1 d2"]]
Stored = tuple[Array, Array]
"""Keys and values."""
State = tuple[Float[Array, "BS D"], Stored | None]
"""The residual stream, and the keys and values of the cache that a run of layers fills."""

# Standard deviation 1 / sqrt(fan-in), so that activations keep their scale.
_dense_init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned scale (Zhang & Sennrich 2019, arXiv 1910.07467).

    The norm itself is float32; the result is rounded to `dtype`, before it is multiplied by the
    scale or, with `scale_in_float32`, after.
    """

    eps: float
    dtype: DTypeLike
    param_dtype: DTypeLike
    scale_in_float32: bool = False
    has_scale: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        wide = x.astype(jnp.float32)
        variance = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        normed = wide * jax.lax.rsqrt(variance + self.eps)
        if not self.has_scale:
            return normed.astype(self.dtype)
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), self.param_dtype)
        if self.scale_in_float32:
            return (normed * scale.astype(jnp.float32)).astype(self.dtype)
        return normed.astype(self.dtype) * scale.astype(self.dtype)


def _norm(config: DenoiserConfig, **module: Any) -> RMSNorm:
    scaled = config.norm_scale_in_float32
    return RMSNorm(config.norm_eps, config.dtype, config.param_dtype, scaled, **module)


class Linear(nn.Module):
    """A dense layer: `nn.Dense`, but its matrix may be quantised, and have a low-rank adapter.

    See `quantization` and `adapters`; the parameters determine which of them apply.
    """

    config: DenoiserConfig
    features: int
    kernel_init: Any
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        """Products are in the compute type."""
        cfg, shape, axes = self.config, (x.shape[-1], self.features), linear_axes(self.name or "")
        kernel = self.param("kernel", self.kernel_init, shape, cfg.param_dtype)
        out = matmul(x, gathered(kernel, axes, x.dtype))
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), cfg.param_dtype)
            out = out + bias.astype(cfg.dtype)
        if not self.has_variable("params", "lora_a"):
            return out
        a: Array = self.get_variable("params", "lora_a")
        b: Array = self.get_variable("params", "lora_b")
        a = gathered(a, (axes[0], None), cfg.dtype)
        return out + (x @ a) @ gathered(b, (None, axes[1]), cfg.dtype)


class DenoiserBlock(nn.Module):
    """Pre-norm attention and gated MLP (or experts), each added to the residual stream.

    The residual stream is [B * S, D]: two-dimensional products are what CPUs run fastest, above
    all in the backward pass.
    """

    config: DenoiserConfig
    has_experts: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "BS D"],
        table: Table,
        mask: Bool[Array, "#B 1 S"] | Bounds | Leading | Copies | CachedKeys | None,
        batch: int,
        last: int | None = None,
        keep: bool = False,
        start: Int[Array, " B"] | None = None,
    ) -> tuple[Float[Array, "BS D"], Stored | None]:
        """The residual stream after this layer, at all positions or some, and keys and values.

        Args:
            x: the residual stream before.
            table: cosines and sines of the rotations.
            mask: True where a position sees another, or a rule for that; None for everywhere.
            batch: rows B.
            last: number of positions to return, see `forward`, as is `start`.
            keep: return keys and values of all positions too.
            start: first of the returned positions.
        """
        cfg = self.config
        # Each layer adds two terms to the residual stream; scaled down, their sum keeps order 1.
        residual_init = nn.initializers.variance_scaling(
            1.0 / (2 * cfg.num_layers), "fan_in", "normal"
        )

        def dense(name: str, features: int, init: Any = _dense_init, bias: bool = False) -> Linear:
            return Linear(cfg, features, init, bias, name=name)

        length = x.shape[0] // batch

        def shape(positions: int, count: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((batch, positions, count, cfg.head_dim), cfg.dtype)

        in_kernel = (
            cfg.fused_attention
            and not isinstance(mask, CachedKeys)
            and takes_kernel(shape(last or length, cfg.num_heads), shape(length, cfg.num_kv_heads))
        )

        def heads(name: str, count: int, h: Array) -> Float[Array, "B S H d"]:
            out = dense(name, count * cfg.head_dim, bias=cfg.qkv_bias)(h)
            if in_kernel:
                # Row by row, as the kernel reads it: a product that the compiler joins with the
                # rotation has another layout, for which it transposes weights and results.
                out = jax.lax.optimization_barrier(out)
            out = out.reshape(batch, -1, count, cfg.head_dim)
            return constrain(out, "batch", None, "heads")

        def rotated(name: str, count: int, h: Array, table: Table) -> Float[Array, "B S H d"]:
            out = heads(name, count, h)
            if cfg.qk_norm:
                out = _norm(cfg, name=f"{name}_norm")(out)
            return rotate(out, table, by_register=in_kernel)

        h = _norm(cfg, name="attention_norm")(x)
        key = rotated("key", cfg.num_kv_heads, h, table)
        value = heads("value", cfg.num_kv_heads, h)
        if last is not None:
            x, h = (y.reshape(batch, -1, y.shape[-1]) for y in (x, h))
            x, h = (window_of(y, last, start).reshape(batch * last, -1) for y in (x, h))
            table = (window_of(table[0], last, start), window_of(table[1], last, start))
            if isinstance(mask, Bounds):
                mask = dataclasses.replace(mask, label=window_of(mask.label, last, start))
        query = rotated("query", cfg.num_heads, h, table)
        if isinstance(mask, Copies):
            attended = attention_in_copies(query, key, value, mask, fused=cfg.fused_attention)
        elif isinstance(mask, CachedKeys):
            attended = attention_with_cache(query, key, value, mask)
        else:
            attended = attention(query, key, value, mask, fused=cfg.fused_attention)
        attended = attended.reshape(x.shape[0], -1)
        kept = (key, value) if keep else None
        out = dense("attention_out", cfg.hidden_size, residual_init, cfg.out_bias)
        x = constrain(x + out(attended), "batch")

        def mlp(prefix: str, size: int) -> Float[Array, "BS D"]:
            gate = dense(f"{prefix}gate", size)(h)
            up = dense(f"{prefix}up", size)(h)
            inner = constrain(nn.silu(gate) * up, "batch", "mlp")
            return dense(f"{prefix}down", cfg.hidden_size, residual_init)(inner)

        h = _norm(cfg, name="mlp_norm")(x)
        if not self.has_experts or cfg.experts is None:
            return constrain(x + mlp("", cfg.intermediate_size), "batch"), kept
        mixed = Experts(cfg, name="experts")(h)
        if cfg.experts.shared_size:
            mixed = mixed + mlp("shared_", cfg.experts.shared_size)
        return constrain(x + mixed, "batch"), kept


class Denoiser(nn.Module):
    """tokens [B, S] -> logits [B, S, V]; position i of the logits predicts token i.

    Attention is bidirectional, within blocks or altogether. The parameters of equal layers are
    stacked on a leading axis; `forward` applies them.

    """

    config: DenoiserConfig
    remat: bool = setting(
        False, "Compute activations again in the backward pass instead of keeping them."
    )

    def setup(self) -> None:
        cfg = self.config
        table = (cfg.vocab_size, cfg.hidden_size)
        # Embeddings of order 1 and logits of order 1 at the start; a tied table can only have the
        # latter (the first norm makes the input scale matter less).
        logit_init = nn.initializers.normal(cfg.hidden_size**-0.5)
        self.embedding = self.param(
            "embedding",
            logit_init if cfg.tie_embeddings else nn.initializers.normal(1.0),
            table,
            cfg.param_dtype,
        )
        # Initialises the stacked parameters; `forward` uses them.
        self.runs = [
            nn.scan(
                DenoiserBlock,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=nn.broadcast,
                length=run.stop - run.start,
            )(cfg, run.has_experts, name=run.name)
            for run in cfg.layer_runs
        ]
        self.final_norm = _norm(cfg)
        if not cfg.tie_embeddings:
            # Rows are tokens, as in the embedding table: a slice of the vocabulary is contiguous.
            self.head = self.param("head", logit_init, table, cfg.param_dtype)

    def __call__(
        self,
        tokens: Int[Array, "B S"],
        attention_mask: Bool[Array, "B S"] | None = None,
        positions: Int[Array, "B S"] | None = None,
    ) -> Float[Array, "B S V"]:
        """Logits of every position, float32. See `forward` for the arguments."""
        return self.logits(self.hidden(tokens, attention_mask, positions))

    def hidden(
        self,
        tokens: Int[Array, "B S"],
        attention_mask: Bool[Array, "B S"] | None = None,
        positions: Int[Array, "B S"] | None = None,
        last: int | None = None,
        copies: Copies | None = None,
        start: Int[Array, " B"] | None = None,
    ) -> Float[Array, "B S D"]:
        """Last hidden states after the final norm, see `forward`."""
        if self.is_initializing():  # Only here do the modules run themselves.
            x = jnp.zeros((1, self.config.hidden_size), self.config.dtype)
            table = rotations(self.config, jnp.zeros((1, 1), jnp.int32))
            for run in self.runs:
                run(x, table, None, 1)
            self.final_norm(x)
        config = self.config
        if not config.fused_attention and fuses(config.dtype, config.head_dim, gradients=True):
            config = dataclasses.replace(config, fused_attention=True)
        return forward(
            config,
            cast(Params, self.variables["params"]),
            tokens,
            attention_mask,
            positions,
            last=last,
            start=start,
            copies=copies,
            remat=self.remat,
        )[0]

    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Float32 logits of the hidden states that are given, whichever positions they are."""
        table = self.embedding if self.config.tie_embeddings else self.head
        return project(table, hidden)


def forward(
    config: DenoiserConfig,
    params: Params,
    tokens: Int[Array, "B S"],
    attention_mask: Bool[Array, "B S"] | None = None,
    positions: Int[Array, "B S"] | None = None,
    *,
    last: int | None = None,
    start: Int[Array, " B"] | None = None,
    copies: Copies | None = None,
    cache: KeyValueCache | None = None,
    cached_mask: Bool[Array, "B K"] | None = None,
    put: Put | None = None,
    keep: bool = False,
    table: Table | None = None,
    remat: bool = False,
    padded_last: bool = False,
) -> tuple[Float[Array, "B L D"], KeyValueCache | None]:
    """Last hidden states after the final norm, in the compute type, and the cache after it.

    Without a cache the tokens see each other. With a cache alone they do as well, and their keys
    and values are written into its first S positions. With `cached_mask` the tokens are a window of
    their text: they attend to each other and to the cached positions that it allows, and the
    cache is only read.

    The cache has a fixed shape and stays where it is: only what is asked for is written, and a
    forward that reads copies nothing.

    Args:
        config: the architecture.
        params: the denoiser's parameters.
        tokens: token ids.
        attention_mask: True where a token is real; padding is never attended, and outputs there are
            finite and arbitrary.
        positions: of the tokens in their text, for rotations and blocks; by default the number of
            real tokens before each one, so that padding shifts nothing. A window must give them.
        last: number L of positions to return; None for all (static). For the others, the last layer
            computes nothing but keys and values.
        start: first of the returned positions of each row, at most S - last; by default the last.
        copies: the tokens are a text and a partly masked copy of it; then the labels alone
            determine attention, and `positions` must be given.
        cache: keys and values of K positions.
        cached_mask: cached positions that the tokens see.
        put: writes the B rows of this forward into those of the cache, of which there may be more;
            see `cache.Put`.
        keep: for a window: return its tokens' keys and values, see `cache.Written` (static).
        table: `rotations` of the positions, for loops that compute them once.
        remat: see `Denoiser`.
        padded_last: with full attention: padding comes after all real tokens (static).

    Returns:
        The hidden states of the L positions, and the cache (None if there was none; that of the
        window alone with `keep`). Where the head scores the next token (`logits_shift`), states are
        moved to the token that they score; the first position of a window keeps its state.

    Raises:
        ValueError: the sequence is longer than the model was made for, or shorter than `last`;
            or arguments exclude each other.
    """
    batch, length = tokens.shape
    is_window = cached_mask is not None
    if copies is None and length > config.max_length:
        raise ValueError(
            f"a sequence of {length} tokens is longer than max_length={config.max_length} of "
            "this denoiser; shorten the prompt or the canvas"
        )
    if last is not None and not 1 <= last <= length:
        raise ValueError(f"last={last} must lie in [1, {length}], the length of the sequence")
    if last is not None and (copies is not None or is_window):
        raise ValueError("last excludes copies and cached_mask; leave out last")
    real = None
    if attention_mask is not None:
        attention_mask = attention_mask.astype(bool)
        real = attention_mask[:, None, :]
    if positions is None:
        positions = default_positions(attention_mask, length)
    mask: Bool[Array, "#B 1 S"] | Bounds | Leading | Copies | None = real
    if copies is not None:
        mask = copies
    elif config.attention_block is not None and not is_window:
        mask = block_causal(positions, config.attention_block, attention_mask)
    elif padded_last and attention_mask is not None and not is_window:
        mask = Leading(attention_mask.sum(axis=-1, dtype=jnp.int32))
    if table is None:
        table = rotations(config, positions)
    x = look_up(params["embedding"], tokens.reshape(-1)).astype(config.dtype)
    # A state that was moved to the next position comes from one position before.
    window = None if last is None else min(last + config.logits_shift, length)
    if last is not None and window is not None and start is not None:
        start = start - (window - last)

    def apply_run(x: Array, number: int) -> tuple[Array, Stored | None]:
        """The residual stream after a run of layers, and what the cache is to have of it."""
        run = config.layer_runs[number]
        block = DenoiserBlock(config, run.has_experts, parent=None)
        stored = None if cache is None else (cache.keys[number], cache.values[number])

        def layer(
            state: State, params: Params, index: Array | int, window: int | None = None
        ) -> tuple[State, Stored | None]:
            x, filled = state
            seen: Any = mask
            if cached_mask is not None:
                of_layer: Stored = _layer_of(stored, index)
                seen = CachedKeys(of_layer[0], of_layer[1], cached_mask[:, None], seen)
            keeps = filled is not None or keep
            inputs = (x, table, seen, batch, window, keeps, start)
            x, new = cast(tuple[Array, Stored | None], block.apply({"params": params}, *inputs))
            if new is not None:
                new = (new[0].transpose(0, 2, 1, 3), new[1].transpose(0, 2, 1, 3))
            if filled is None or new is None:
                return (x, filled), new
            filled = (_fill(filled[0], index, new[0], put), _fill(filled[1], index, new[1], put))
            return (x, filled), None

        final = None
        if window is not None and number == len(config.layer_runs) - 1:
            final = functools.partial(layer, window=window)
        if remat:
            layer = jax.checkpoint(layer, prevent_cse=False)
        state = (x, None if is_window else stored)
        (x, filled), new = _over_layers(layer, state, params[run.name], final)
        return x, filled if new is None else new

    updates = []
    for number in range(len(config.layer_runs)):
        x, update = apply_run(x, number)
        updates.append(update)
    norm = _norm(config, parent=None)
    hidden = cast(Array, norm.apply({"params": params["final_norm"]}, x))
    hidden = hidden.reshape(batch, -1, x.shape[-1])
    if config.logits_shift:
        hidden = unshift(hidden, None if is_window else attention_mask, start)
    if last is not None:
        hidden = hidden[:, -last:]
    if cache is None or None in updates:
        return hidden, cache
    return hidden, KeyValueCache(*zip(*updates, strict=True))


def _over_layers(
    layer: Callable[..., tuple[Any, Any]], state: Any, stacked: Params, final: Any = None
) -> tuple[Any, Any]:
    """The loop over the layers of a run: the state after them, and their outputs stacked.

    `layer` maps (state, parameters of the layer, index) to (state, output); `final`, if given,
    takes its place at the last one, and then there are no outputs.
    """
    depth = jax.tree.leaves(stacked)[0].shape[0]

    def run(carry: tuple[Any, Array], params: Params | None) -> tuple[tuple[Any, Array], Any]:
        # The index is carried: GPUs read slices of stacked arrays in place where it counts rounds,
        # and copy some where it comes from an array.
        state, index = carry
        of_layer = _layer_of(stacked, index) if params is None else params
        state, out = layer(state, of_layer, index)
        return (state, index + 1), out

    carry = (state, jnp.zeros((), jnp.int32))
    if final is None:
        # Scanned over, gradients of the parameters are written layer by layer.
        (state, _), out = jax.lax.scan(run, carry, stacked)
        return state, out
    # By index: a slice of several layers would be a copy of their parameters.
    (state, _), _ = jax.lax.scan(run, carry, None, length=depth - 1)
    return final(state, _layer_of(stacked, depth - 1), depth - 1)


def _layer_of(stacked: Any, index: Array | int) -> Any:
    """One layer's slice of stacked arrays."""
    take = functools.partial(jax.lax.dynamic_index_in_dim, index=index, keepdims=False)
    return jax.tree.map(take, stacked)


def _fill(
    stacked: Float[Array, "N B G K d"],
    index: Array | int,
    new: Float[Array, "F G S d"],
    put: Put | None,
) -> Float[Array, "N B G K d"]:
    """Stacked arrays with the first S positions of one layer replaced."""
    new = new.astype(stacked.dtype)
    if put is not None:
        return put(stacked, index, new)
    return jax.lax.dynamic_update_slice(stacked, new[None], (index, *(0 for _ in new.shape)))


def rotations(config: DenoiserConfig, positions: Int[Array, "#B S"]) -> Table:
    """Cosines and sines for the positions, in the type in which heads are rotated."""
    table = rotary_table(positions, config.rotary_dim or config.head_dim, config.rope_theta)
    if config.rotary_in_float32:
        return table
    return table[0].astype(config.dtype), table[1].astype(config.dtype)


def output_table(config: DenoiserConfig, params: Params) -> Float[Array, "V D"]:
    """The output projection, one row per token (the embedding table where it is tied)."""
    return params["embedding" if config.tie_embeddings else "head"]


def project(table: Float[Array, "V D"], hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
    """Logits of `hidden` for the tokens in `table`, accumulated in float32."""
    flat = hidden.reshape(-1, hidden.shape[-1])
    logits = jax.lax.dot_general(
        flat,
        gathered(table, ("vocab", "embed"), hidden.dtype),
        (((1,), (1,)), ((), ())),
        preferred_element_type=jnp.float32,
    )
    logits = constrain(logits, "batch", "vocab")
    return logits.reshape(*hidden.shape[:-1], -1)


@functools.partial(jax.jit, static_argnames="config")
def init_params(config: DenoiserConfig, key: Array) -> Params:
    """Random parameters for training from scratch; `key` is a typed PRNG key."""
    return Denoiser(config).init(key, jnp.zeros((1, 1), jnp.int32))["params"]


def abstract_params(config: DenoiserConfig) -> Params:
    """Shapes and types of the parameters (`jax.ShapeDtypeStruct`), without any memory."""
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def count_params(config: DenoiserConfig) -> int:
    """Number of scalars in the parameters.

    >>> from jax_unmask.denoisers import families
    >>> f"{count_params(families.published_config('GSAI-ML/LLaDA-8B-Instruct')):,}"
    '8,015,581,184'
    """
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config)))
