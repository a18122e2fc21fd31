"""The denoiser: one transformer for all families, described by a `DenoiserConfig`."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from jax_unmask.denoisers.attention import (
    Beside,
    Copies,
    attention,
    attention_beside,
    attention_in_copies,
    rotary_table,
    rotate,
)
from jax_unmask.denoisers.config import DenoiserConfig
from jax_unmask.denoisers.moe import Experts
from jax_unmask.denoisers.positions import block_causal, default_positions, unshift, window_of
from jax_unmask.denoisers.quantization import matmul
from jax_unmask.denoisers.sharding import gathered, linear_axes, look_up
from jax_unmask.runtime.mesh import constrain

Params = dict[str, Any]
Table = tuple[Float[Array, "#B S 1 d2"], Float[Array, "#B S 1 d2"]]


class KeysAndValues(NamedTuple):
    """Of one layer, keys rotated."""

    keys: Float[Array, "B S G d"]
    values: Float[Array, "B S G d"]


# Standard deviation 1 / sqrt(fan-in), so that activations keep their scale.
_dense_init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned scale (Zhang & Sennrich 2019, arXiv 1910.07467).

    Normalises in float32, casts to the compute type, then multiplies by the scale; with
    `norm_scale_in_float32` the cast comes last.
    """

    config: DenoiserConfig

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        cfg = self.config
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), cfg.param_dtype)
        wide = x.astype(jnp.float32)
        variance = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        normed = wide * jax.lax.rsqrt(variance + cfg.norm_eps)
        if cfg.norm_scale_in_float32:
            return (normed * scale.astype(jnp.float32)).astype(cfg.dtype)
        return normed.astype(cfg.dtype) * scale.astype(cfg.dtype)


class Linear(nn.Module):
    """A dense layer: `nn.Dense`, but its matrix may be quantised, and have a low-rank adapter.

    See `quantization` and `adapters`; the parameters say which of it there is.
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


class Block(nn.Module):
    """Pre-norm attention and gated MLP (or experts), each added to the residual stream.

    Attributes:
        config: the architecture.
        has_experts: whether this layer has experts instead of the MLP.

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
        mask: Bool[Array, "#B #S S"] | Copies | Beside | None,
        batch: int,
        last: int | None = None,
        keep: bool = False,
        start: Int[Array, " B"] | None = None,
    ) -> tuple[Float[Array, "BS D"], KeysAndValues | None]:
        """Gives all positions, or only some of them (which see all).

        Args:
            x: the residual stream.
            table: of the rotations.
            mask: which of the positions are seen; or what else is.
            batch: rows B.
            last: how many positions to give; None for all.
            keep: whether to give the keys and values of the positions too.
            start: first of the positions to give, in each row; by default they are the last ones.
        """
        cfg = self.config
        # Each layer adds two terms to the residual stream; scaled down, their sum keeps order 1.
        residual_init = nn.initializers.variance_scaling(
            1.0 / (2 * cfg.num_layers), "fan_in", "normal"
        )

        def dense(name: str, features: int, init: Any = _dense_init, bias: bool = False) -> Linear:
            return Linear(cfg, features, init, bias, name=name)

        def heads(name: str, count: int, h: Array) -> Float[Array, "B S H d"]:
            out = dense(name, count * cfg.head_dim, bias=cfg.qkv_bias)(h)
            out = out.reshape(batch, -1, count, cfg.head_dim)
            return constrain(out, "batch", None, "heads")

        def turned(name: str, count: int, h: Array, table: Table) -> Float[Array, "B S H d"]:
            out = heads(name, count, h)
            if cfg.qk_norm:
                out = RMSNorm(cfg, name=f"{name}_norm")(out)
            return rotate(out, table)

        h = RMSNorm(cfg, name="attention_norm")(x)
        key = turned("key", cfg.num_kv_heads, h, table)
        value = heads("value", cfg.num_kv_heads, h)
        if last is not None:
            x, h = (y.reshape(batch, -1, y.shape[-1]) for y in (x, h))
            x, h = (window_of(y, last, start).reshape(batch * last, -1) for y in (x, h))
            table = (window_of(table[0], last, start), window_of(table[1], last, start))
            if mask is not None and not isinstance(mask, Copies | Beside) and mask.shape[1] > 1:
                mask = window_of(mask, last, start)
        query = turned("query", cfg.num_heads, h, table)
        if isinstance(mask, Copies):
            attended = attention_in_copies(query, key, value, mask)
        elif isinstance(mask, Beside):
            attended = attention_beside(query, key, value, mask)
        else:
            attended = attention(query, key, value, mask, fused=cfg.fused_attention)
        attended = attended.reshape(x.shape[0], -1)
        kept = KeysAndValues(key, value) if keep else None
        out = dense("attention_out", cfg.hidden_size, residual_init, cfg.out_bias)
        x = constrain(x + out(attended), "batch")

        def mlp(prefix: str, size: int) -> Float[Array, "BS D"]:
            gate = dense(f"{prefix}gate", size)(h)
            up = dense(f"{prefix}up", size)(h)
            inner = constrain(nn.silu(gate) * up, "batch", "mlp")
            return dense(f"{prefix}down", cfg.hidden_size, residual_init)(inner)

        h = RMSNorm(cfg, name="mlp_norm")(x)
        if not self.has_experts or cfg.experts is None:
            return constrain(x + mlp("", cfg.intermediate_size), "batch"), kept
        mixed = Experts(cfg, name="experts")(h)
        if cfg.experts.shared_size:
            mixed = mixed + mlp("shared_", cfg.experts.shared_size)
        return constrain(x + mixed, "batch"), kept


class Denoiser(nn.Module):
    """tokens [B, S] -> logits [B, S, V]; position i of the logits predicts token i.

    Attention is bidirectional, within blocks or altogether. The parameters of equal layers are
    stacked on a leading axis and applied by a scan, so compile time does not grow with depth.

    Attributes:
        config: the architecture.
        remat: recompute each block's activations in the backward pass instead of keeping them
            (memory for time; the parameters are the same).
    """

    config: DenoiserConfig
    remat: bool = False

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
        block = nn.remat(Block, prevent_cse=False, static_argnums=(4,)) if self.remat else Block
        self.runs = [
            nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(nn.broadcast, nn.broadcast, nn.broadcast),
                length=run.stop - run.start,
            )(cfg, run.has_experts, name=run.name)
            for run in cfg.layer_runs
        ]
        self.final_norm = RMSNorm(cfg)
        if not cfg.tie_embeddings:
            # Rows are tokens, as in the embedding table: a slice of the vocabulary is contiguous.
            self.head = self.param("head", logit_init, table, cfg.param_dtype)

    def __call__(
        self,
        tokens: Int[Array, "B S"],
        attention_mask: Bool[Array, "B S"] | None = None,
        positions: Int[Array, "B S"] | None = None,
    ) -> Float[Array, "B S V"]:
        """Logits of every position, float32. See `hidden` for the arguments."""
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
        """Last hidden state after the final norm, in the compute type.

        Args:
            tokens: token ids.
            attention_mask: True where a token is real; padding is never attended. What comes out
                at padded positions is finite and means nothing.
            positions: of the tokens in their text, for rotations and blocks; by default the number
                of real tokens before each one, so that padding shifts nothing.
            last: give only so many positions; None for all (static). The last layer then computes
                nothing but keys and values for the others.
            copies: the tokens are a text and a partly masked copy of it; then the labels alone say
                what is attended, and `positions` must be given.
            start: first of the positions to give, in each row, at most S - last; by default they
                are the last ones.

        Raises:
            ValueError: the sequence is longer than the model was made for, or shorter than `last`;
                or both `last` and `copies` are given.
        """
        cfg = self.config
        batch, length = tokens.shape
        if copies is None and length > cfg.max_length:
            raise ValueError(
                f"a sequence of {length} tokens is longer than max_length={cfg.max_length} of "
                "this denoiser; shorten the prompt or the canvas"
            )
        if last is not None and not 1 <= last <= length:
            raise ValueError(f"last={last} must lie in [1, {length}], the length of the sequence")
        if last is not None and copies is not None:
            raise ValueError("last and copies exclude each other; leave out last")
        real = None
        if attention_mask is not None:
            attention_mask = attention_mask.astype(bool)
            real = attention_mask[:, None, :]
        if positions is None:
            positions = default_positions(attention_mask, length)
        mask: Bool[Array, "#B #S S"] | Copies | None = real
        if copies is not None:
            mask = copies
        elif cfg.attention_block is not None:
            visible = block_causal(positions, cfg.attention_block)
            mask = visible if real is None else visible & real
        table = rotary_table(positions, cfg.rotary_dim or cfg.head_dim, cfg.rope_theta)
        if not cfg.rotary_in_float32:
            table = (table[0].astype(cfg.dtype), table[1].astype(cfg.dtype))
        x = look_up(self.embedding, tokens.reshape(-1)).astype(cfg.dtype)
        # A state that was moved to the next position comes from one position before.
        window = None if last is None else min(last + cfg.logits_shift, length)
        if last is not None and window is not None and start is not None:
            start = start - (window - last)
        for run in self.runs[:-1]:
            x, _ = run(x, table, mask, batch)
        if window is None:
            x, _ = self.runs[-1](x, table, mask, batch)
        else:
            x = self._last_run(window, start, x, table, mask, batch)
        hidden = self.final_norm(x).reshape(batch, -1, x.shape[-1])
        if cfg.logits_shift:
            hidden = unshift(hidden, attention_mask, start)
        return hidden if last is None else hidden[:, -last:]

    def _last_run(
        self,
        window: int,
        start: Int[Array, " B"] | None,
        x: Float[Array, "BS D"],
        table: Table,
        mask: Array | Copies | None,
        batch: int,
    ) -> Float[Array, "BL D"]:
        """The last run of layers, the last layer for some positions only."""
        kind = self.config.layer_runs[-1]
        stacked = self.runs[-1].variables["params"]
        block, final = Block(self.config, kind.has_experts, parent=None), kind.stop - kind.start - 1

        def apply(index: Array | int, x: Array, last: int | None = None) -> Array:
            # Layer by layer: a slice of several layers would be a copy of their parameters.
            take = functools.partial(jax.lax.dynamic_index_in_dim, index=index, keepdims=False)
            params = {"params": jax.tree.map(take, stacked)}
            return block.apply(params, x, table, mask, batch, last, False, start)[0]

        return apply(final, jax.lax.fori_loop(0, final, apply, x), window)

    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Float32 logits of the hidden states that are given, whichever positions they are."""
        table = self.embedding if self.config.tie_embeddings else self.head
        return project(table, hidden)


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
    """Number of scalars in the parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config)))
