"""The network: a causal encoder that fills a cache, and a decoder of canvases that reads it.

Both are the same layers with the same weights (but for a scalar per layer); what differs is which
positions see each other. In the encoder a position sees the ones before it, in sliding layers those
of a window. In the decoder every canvas position sees the whole canvas and the cache, in sliding
layers the last `sliding_window - 1` entries of it.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from jax_unmask.denoisers.attention import rotate
from jax_unmask.denoisers.diffusion_gemma.config import DiffusionGemmaConfig, LayerConfig

Cache = tuple[tuple[Float[Array, "B T G d"], Float[Array, "B T G d"]], ...]
"""Rotated keys, and values, of each layer; T positions."""

_init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
_expert_init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", batch_axis=(0,))


class Norm(nn.Module):
    """RMSNorm in float32, the scale included; without one where `has_scale` is off."""

    config: DiffusionGemmaConfig
    has_scale: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        cfg, wide = self.config, x.astype(jnp.float32)
        wide = wide * (jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + cfg.norm_eps) ** -0.5
        if self.has_scale:
            scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), cfg.param_dtype)
            wide = wide * scale.astype(jnp.float32)
        return wide.astype(x.dtype)


def _dense(cfg: DiffusionGemmaConfig, features: int, name: str | None = None) -> nn.Dense:
    return nn.Dense(
        features,
        use_bias=False,
        kernel_init=_init,
        dtype=cfg.dtype,
        param_dtype=cfg.param_dtype,
        name=name,
    )


class GatedMlp(nn.Module):
    """GELU-gated MLP."""

    config: DiffusionGemmaConfig

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        cfg = self.config
        gate = nn.gelu(_dense(cfg, cfg.intermediate_size, "gate")(x), approximate=True)
        up = _dense(cfg, cfg.intermediate_size, "up")(x)
        return _dense(cfg, cfg.hidden_size, "down")(gate * up)


class Experts(nn.Module):
    """Mixture of experts; the router sees the residual stream, the experts a normed copy."""

    config: DiffusionGemmaConfig

    @nn.compact
    def __call__(
        self, residual: Float[Array, "T D"], x: Float[Array, "T D"]
    ) -> Float[Array, "T D"]:
        cfg, ones = self.config, nn.initializers.ones
        width, count, size = cfg.hidden_size, cfg.num_experts, cfg.expert_size
        scale = self.param("router_scale", ones, (width,), cfg.param_dtype).astype(cfg.dtype)
        per_expert = self.param("expert_scale", ones, (count,), cfg.param_dtype)
        seen = Norm(cfg, has_scale=False)(residual) * scale * width**-0.5
        scores = jax.nn.softmax(_dense(cfg, count, "router")(seen).astype(jnp.float32))
        weights, chosen = jax.lax.top_k(scores, cfg.per_token)
        weights = weights / weights.sum(axis=-1, keepdims=True)
        weights = weights * per_expert.astype(jnp.float32)[chosen]

        def stacked(name: str, fan_in: int, fan_out: int) -> Array:
            shape = (count, fan_in, fan_out)
            return self.param(name, _expert_init, shape, cfg.param_dtype).astype(cfg.dtype)

        # One row per (token, expert) pair, those of an expert beside each other.
        pairs = chosen.reshape(-1)
        order = jnp.argsort(pairs, stable=True)
        sizes = jnp.bincount(pairs, length=count).astype(jnp.int32)
        grouped = jnp.take(x, order // cfg.per_token, axis=0)
        hidden = jax.lax.ragged_dot(grouped, stacked("gate_up", width, 2 * size), sizes)
        gate, up = jnp.split(hidden, 2, axis=-1)
        out = nn.gelu(gate, approximate=True) * up
        out = jax.lax.ragged_dot(out, stacked("down", size, width), sizes)
        out = jnp.take(out, jnp.argsort(order), axis=0).reshape(-1, cfg.per_token, width)
        return (out * weights[..., None]).sum(axis=1).astype(cfg.dtype)


class Layer(nn.Module):
    """Attention, then a dense MLP and experts side by side, each between two norms."""

    config: DiffusionGemmaConfig
    layer: LayerConfig

    def setup(self) -> None:
        cfg, layer = self.config, self.layer
        self.query = _dense(cfg, cfg.num_heads * layer.head_dim)
        self.key = _dense(cfg, layer.num_kv_heads * layer.head_dim)
        if layer.is_sliding:
            self.value = _dense(cfg, layer.num_kv_heads * layer.head_dim)
        self.attention_out = _dense(cfg, cfg.hidden_size)
        self.query_norm, self.key_norm = Norm(cfg), Norm(cfg)
        self.value_norm = Norm(cfg, has_scale=False)
        self.attention_norm, self.after_attention_norm = Norm(cfg), Norm(cfg)
        self.mlp_norm, self.after_mlp_norm = Norm(cfg), Norm(cfg)
        self.experts_norm, self.after_experts_norm = Norm(cfg), Norm(cfg)
        self.after_both_norm = Norm(cfg)
        self.mlp, self.experts = GatedMlp(cfg), Experts(cfg)
        ones = nn.initializers.ones
        self.scalar = self.param("scalar", ones, (1,), cfg.param_dtype)
        self.encoder_scalar = self.param("encoder_scalar", ones, (1,), cfg.param_dtype)

    def keys_and_values(
        self, x: Float[Array, "B S D"], positions: Int[Array, "B S"]
    ) -> tuple[Float[Array, "B S G d"], Float[Array, "B S G d"]]:
        """Rotated keys, and values, of positions whose residual stream is `x`."""
        h = self.attention_norm(x)
        shape = (*h.shape[:2], self.layer.num_kv_heads, self.layer.head_dim)
        key = self.key(h).reshape(shape)
        value = self.value(h).reshape(shape) if self.layer.is_sliding else key
        return rotate(self.key_norm(key), self._table(positions)), self.value_norm(value)

    def __call__(
        self,
        x: Float[Array, "B S D"],
        positions: Int[Array, "B S"],
        key: Float[Array, "B K G d"],
        value: Float[Array, "B K G d"],
        visible: Bool[Array, "B Q K"],
        is_encoder: bool,
    ) -> Float[Array, "B S D"]:
        """The residual stream after this layer, given all keys and values that may be seen."""
        batch, length, width = x.shape
        query = self.query(self.attention_norm(x)).reshape(batch, length, -1, self.layer.head_dim)
        query = rotate(self.query_norm(query), self._table(positions))
        out = self.attention_out(_attend(query, key, value, visible))
        x = x + self.after_attention_norm(out)
        dense = self.after_mlp_norm(self.mlp(self.mlp_norm(x)))
        flat = x.reshape(-1, width)
        mixed = self.experts(flat, self.experts_norm(flat)).reshape(x.shape)
        both = self.after_both_norm(dense + self.after_experts_norm(mixed))
        scalar = self.encoder_scalar if is_encoder else self.scalar
        return (x + both) * scalar.astype(x.dtype)

    def _table(self, positions: Int[Array, "B S"]) -> tuple[Array, Array]:
        """Cosines and sines; where the frequency is zero nothing turns."""
        layer, half = self.layer, self.layer.head_dim // 2
        turning = int(layer.rotary_fraction * layer.head_dim // 2)
        frequencies = layer.theta ** (-2.0 * jnp.arange(half, dtype=jnp.float32) / layer.head_dim)
        frequencies = jnp.where(jnp.arange(half) < turning, frequencies, 0.0)
        angles = positions[..., None, None].astype(jnp.float32) * frequencies
        dtype = self.config.dtype
        return jnp.cos(angles).astype(dtype), jnp.sin(angles).astype(dtype)


class DiffusionGemma(nn.Module):
    """Tokens and a cache to logits; the two passes are `encode` and `decode`.

    Layers are of several shapes, so they are applied one by one: compile time grows with depth.
    """

    config: DiffusionGemmaConfig

    def setup(self) -> None:
        cfg = self.config
        self.embedding = self.param(
            "embedding", _init, (cfg.vocab_size, cfg.hidden_size), cfg.param_dtype
        )
        self.layers = [Layer(cfg, layer) for layer in cfg.layers]
        self.final_norm = Norm(cfg)
        self.conditioning_norm = Norm(cfg)
        self.conditioning_mlp = GatedMlp(cfg)
        self.conditioned_norm = Norm(cfg, has_scale=False)

    def __call__(
        self, tokens: Int[Array, "B P"], canvas: Int[Array, "B C"]
    ) -> Float[Array, "B C V"]:
        """Logits of a canvas after a prompt without padding, at the first denoising step."""
        real = jnp.ones(tokens.shape, bool)
        _, cache = self.encode(tokens, empty_cache(self.config, *tokens.shape), 0, real)
        return self.decode(canvas, cache, tokens.shape[1], real)

    def encode(
        self,
        tokens: Int[Array, "B S"],
        cache: Cache,
        start: int | Int[Array, ""],
        real: Bool[Array, "B T"],
    ) -> tuple[Float[Array, "B S D"], Cache]:
        """Writes tokens into the cache.

        Args:
            tokens: the text at the places from `start` on.
            cache: holds the places before.
            start: place of the first token.
            real: True where a place of the cache holds, or will hold, a token that is no padding.

        Returns:
            The last hidden states, and the cache.
        """
        length = tokens.shape[1]
        positions = _positions(real, start, length)
        here = start + jnp.arange(length)[:, None]
        place = jnp.arange(real.shape[1])[None]
        causal = (place <= here)[None] & real[:, None]
        window = causal & (place > here - self.config.sliding_window)[None]
        x, filled = self._embed(tokens), []
        for layer, (keys, values) in zip(self.layers, cache, strict=True):
            new = layer.keys_and_values(x, positions)
            keys, values = (
                jax.lax.dynamic_update_slice_in_dim(old, fresh.astype(old.dtype), start, axis=1)
                for old, fresh in zip((keys, values), new, strict=True)
            )
            visible = window if layer.layer.is_sliding else causal
            x = layer(x, positions, keys, values, visible, True)
            filled.append((keys, values))
        return self.final_norm(x), tuple(filled)

    def decode(
        self,
        canvas: Int[Array, "B C"],
        cache: Cache,
        length: int | Int[Array, ""],
        real: Bool[Array, "B T"],
        soft: Float[Array, "B C D"] | None = None,
    ) -> Float[Array, "B C V"]:
        """Logits of a canvas, float32; the cache is only read.

        Args:
            canvas: current tokens.
            cache: of the text before the canvas.
            length: places of the cache that are filled; the canvas stands behind them.
            real: see `encode`.
            soft: self-conditioning, see `soft_embeddings`; None at the first step.
        """
        batch, size = canvas.shape
        place = jnp.arange(real.shape[1])
        before = real & (place < length)
        positions = before.sum(axis=-1, dtype=jnp.int32)[:, None] + jnp.arange(size)
        own = jnp.ones((batch, size), bool)
        visible = jnp.concatenate([before, own], axis=1)[:, None]
        near = before & (place > length - self.config.sliding_window)
        window = jnp.concatenate([near, own], axis=1)[:, None]
        x = self._embed(canvas)
        soft = jnp.zeros_like(x) if soft is None else soft.astype(x.dtype)
        x = self.conditioned_norm(x + self.conditioning_mlp(self.conditioning_norm(soft)))
        for layer, (keys, values) in zip(self.layers, cache, strict=True):
            new_key, new_value = layer.keys_and_values(x, positions)
            key = jnp.concatenate([keys.astype(x.dtype), new_key], axis=1)
            value = jnp.concatenate([values.astype(x.dtype), new_value], axis=1)
            seen = window if layer.layer.is_sliding else visible
            x = layer(x, positions, key, value, seen, False)
        return self._logits(self.final_norm(x))

    def soft_embeddings(self, logits: Float[Array, "B C V"]) -> Float[Array, "B C D"]:
        """Self-conditioning for the next step: the embedding that is expected under the logits."""
        # As published, the logits pass through the type of the weights.
        logits = logits.astype(self.config.param_dtype).astype(jnp.float32)
        table = self.embedding.astype(self.config.dtype)
        return jax.nn.softmax(logits).astype(table.dtype) @ table * self._embedding_scale

    @property
    def _embedding_scale(self) -> Array:
        return jnp.asarray(self.config.hidden_size**0.5, self.config.dtype)

    def _embed(self, tokens: Int[Array, "B S"]) -> Float[Array, "B S D"]:
        table = jnp.take(self.embedding, tokens, axis=0).astype(self.config.dtype)
        return table * self._embedding_scale

    def _logits(self, hidden: Float[Array, "B C D"]) -> Float[Array, "B C V"]:
        cap, table = self.config.softcap, self.embedding.astype(hidden.dtype)
        logits = jnp.einsum("bcd,vd->bcv", hidden, table, preferred_element_type=jnp.float32)
        return cap * jnp.tanh(logits / cap)


def empty_cache(config: DiffusionGemmaConfig, batch: int, places: int) -> Cache:
    """A cache of so many places."""

    def empty(layer: LayerConfig) -> Array:
        return jnp.zeros((batch, places, layer.num_kv_heads, layer.head_dim), config.dtype)

    return tuple((empty(layer), empty(layer)) for layer in config.layers)


def _positions(
    real: Bool[Array, "B T"], start: int | Int[Array, ""], length: int
) -> Int[Array, "B S"]:
    """Real tokens before each place."""
    counts = jnp.maximum(jnp.cumsum(real, axis=-1, dtype=jnp.int32) - 1, 0)
    return jax.lax.dynamic_slice_in_dim(counts, start, length, axis=1)


def _attend(query: Array, key: Array, value: Array, visible: Array) -> Float[Array, "B S Hd"]:
    """Softmax attention without a scale: queries and keys are normed."""
    batch, length, heads, width = query.shape
    query = query.reshape(batch, length, key.shape[2], -1, width)
    scores: Any = jnp.einsum("bqghd,bkgd->bghqk", query, key, preferred_element_type=jnp.float32)
    # The lowest finite number, not -inf: a place of padding that sees nothing must not become NaN.
    scores = jnp.where(visible[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bghqk,bkgd->bqghd", weights, value).reshape(batch, length, heads * width)
