"""The network: a causal encoder that fills a cache, and a decoder of canvases that reads it.

Both are the same layers with the same weights (but for a scalar per layer); what differs is which
positions see each other. In the encoder a position attends to those before it, in sliding layers to
those of a window. In the decoder every canvas position attends to the whole canvas and the cache,
in sliding layers to the last `sliding_window - 1` entries of it.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from jax_unmask.denoisers.attention import CachedKeys, attention_with_cache, rotary_table, rotate
from jax_unmask.denoisers.cache import KeyValueCache
from jax_unmask.denoisers.diffusion_gemma.config import DiffusionGemmaConfig, LayerConfig
from jax_unmask.denoisers.moe import mix_experts
from jax_unmask.denoisers.quantization import ragged_matmul
from jax_unmask.denoisers.transformer import RMSNorm, project

_init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
_expert_init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", batch_axis=(0,))


def _norm(cfg: DiffusionGemmaConfig, has_scale: bool = True) -> RMSNorm:
    return RMSNorm(cfg.norm_eps, cfg.dtype, cfg.param_dtype, True, has_scale)


def _dense(cfg: DiffusionGemmaConfig, features: int, name: str | None = None) -> nn.Dense:
    types: dict[str, Any] = {"dtype": cfg.dtype, "param_dtype": cfg.param_dtype}
    return nn.Dense(features, use_bias=False, kernel_init=_init, name=name, **types)


class GatedMlp(nn.Module):
    """GELU-gated MLP."""

    config: DiffusionGemmaConfig

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        cfg = self.config
        gate = nn.gelu(_dense(cfg, cfg.intermediate_size, "gate")(x), approximate=True)
        up = _dense(cfg, cfg.intermediate_size, "up")(x)
        return _dense(cfg, cfg.hidden_size, "down")(gate * up)


class RoutedExperts(nn.Module):
    """Mixture of experts; the router reads the residual stream, the experts a normed copy."""

    config: DiffusionGemmaConfig

    @nn.compact
    def __call__(
        self, residual: Float[Array, "T D"], x: Float[Array, "T D"]
    ) -> Float[Array, "T D"]:
        cfg, ones = self.config, nn.initializers.ones
        width, count, size = cfg.hidden_size, cfg.num_experts, cfg.expert_size
        scale = self.param("router_scale", ones, (width,), cfg.param_dtype).astype(cfg.dtype)
        per_expert = self.param("expert_scale", ones, (count,), cfg.param_dtype)
        seen = _norm(cfg, has_scale=False)(residual) * scale * width**-0.5
        scores = jax.nn.softmax(_dense(cfg, count, "router")(seen).astype(jnp.float32))
        weights, chosen = jax.lax.top_k(scores, cfg.per_token)
        weights = weights / weights.sum(axis=-1, keepdims=True)
        weights = weights * per_expert.astype(jnp.float32)[chosen]

        def stacked(name: str, fan_in: int, fan_out: int) -> Array:
            shape = (count, fan_in, fan_out)
            return self.param(name, _expert_init, shape, cfg.param_dtype).astype(cfg.dtype)

        gate_up, down = stacked("gate_up", width, 2 * size), stacked("down", size, width)

        def gated_mlp(x: Array, sizes: Array, experts: Array) -> Array:
            hidden = ragged_matmul(x, gate_up, sizes, experts)
            gate, up = jnp.split(hidden, 2, axis=-1)
            inner = nn.gelu(gate, approximate=True) * up
            return ragged_matmul(inner, down, sizes, experts)

        return mix_experts(x, chosen, weights, count, gated_mlp).astype(cfg.dtype)


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
        self.query_norm, self.key_norm = _norm(cfg), _norm(cfg)
        self.value_norm = _norm(cfg, has_scale=False)
        self.attention_norm, self.after_attention_norm = _norm(cfg), _norm(cfg)
        self.mlp_norm, self.after_mlp_norm = _norm(cfg), _norm(cfg)
        self.experts_norm, self.after_experts_norm = _norm(cfg), _norm(cfg)
        self.after_both_norm = _norm(cfg)
        self.mlp, self.experts = GatedMlp(cfg), RoutedExperts(cfg)
        ones = nn.initializers.ones
        self.scalar = self.param("scalar", ones, (1,), cfg.param_dtype)
        self.encoder_scalar = self.param("encoder_scalar", ones, (1,), cfg.param_dtype)

    def __call__(
        self,
        x: Float[Array, "B S D"],
        positions: Int[Array, "B S"],
        cached: tuple[Float[Array, "B G K d"], Float[Array, "B G K d"]],
        cached_mask: Bool[Array, "B 1|S K"],
        mask: Bool[Array, "B 1|S S"],
        is_encoder: bool,
    ) -> tuple[Float[Array, "B S D"], tuple[Float[Array, "B G S d"], Float[Array, "B G S d"]]]:
        """The residual stream after this layer, and the positions' rotated keys, and values.

        The positions see the `cached` keys and values (rotated) that `cached_mask` allows, and of
        their own those that `mask` does.
        """
        batch, length, width = x.shape
        layer, h = self.layer, self.attention_norm(x)
        # A frequency of zero leaves the pair unrotated.
        turning = int(layer.rotary_fraction * layer.head_dim // 2)
        table = rotary_table(positions, layer.head_dim, layer.theta, turning)
        table = (table[0].astype(x.dtype), table[1].astype(x.dtype))

        def heads(h: Array) -> Array:
            return h.reshape(batch, length, -1, layer.head_dim)

        query = rotate(self.query_norm(heads(self.query(h))), table)
        key = heads(self.key(h))
        value = self.value_norm(heads(self.value(h)) if layer.is_sliding else key)
        key = rotate(self.key_norm(key), table)
        cached = (cached[0].astype(x.dtype), cached[1].astype(x.dtype))
        keys = CachedKeys(*cached, cached_mask=cached_mask, mask=mask)
        # No scale: queries and keys are normed.
        out = attention_with_cache(query, key, value, keys, scale=1.0)
        out = self.attention_out(out.reshape(batch, length, -1))
        x = x + self.after_attention_norm(out)
        dense = self.after_mlp_norm(self.mlp(self.mlp_norm(x)))
        flat = x.reshape(-1, width)
        mixed = self.experts(flat, self.experts_norm(flat)).reshape(x.shape)
        both = self.after_both_norm(dense + self.after_experts_norm(mixed))
        scalar = self.encoder_scalar if is_encoder else self.scalar
        kept = (key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3))
        return (x + both) * scalar.astype(x.dtype), kept


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
        self.final_norm = _norm(cfg)
        self.conditioning_norm = _norm(cfg)
        self.conditioning_mlp = GatedMlp(cfg)
        self.conditioned_norm = _norm(cfg, has_scale=False)

    def __call__(
        self, tokens: Int[Array, "B P"], canvas: Int[Array, "B C"]
    ) -> Float[Array, "B C V"]:
        """Logits of a canvas after a prompt without padding, at the first denoising step."""
        real = jnp.ones(tokens.shape, bool)
        _, cache = self.encode(tokens, empty_cache(self.config, *tokens.shape), 0, real)
        return self.logits(self.decode(canvas, cache, tokens.shape[1], real))

    def encode(
        self,
        tokens: Int[Array, "B S"],
        cache: KeyValueCache,
        start: int | Int[Array, ""],
        real: Bool[Array, "B T"],
    ) -> tuple[Float[Array, "B S D"], KeyValueCache]:
        """Writes tokens into the cache.

        Args:
            tokens: the text at the places from `start` on.
            cache: holds the places before.
            start: place of the first token.
            real: True where a place of the cache holds, or will hold, a token that is no padding.

        Returns:
            The last hidden states, and the cache.
        """
        length, window = tokens.shape[1], self.config.sliding_window
        place, here = jnp.arange(real.shape[1]), start + jnp.arange(length)[:, None]
        counts = jnp.maximum(jnp.cumsum(real, axis=-1, dtype=jnp.int32) - 1, 0)
        positions, own = (
            jax.lax.dynamic_slice_in_dim(x, start, length, axis=1) for x in (counts, real)
        )
        before = (real & (place < start))[:, None]
        causal = (here >= here.T)[None] & own[:, None]
        near = before & (place > here - window)
        causal_near = causal & (here - window < here.T)
        x, keys, values = self._embed(tokens), [], []
        of_layers = zip(cache.keys, cache.values, strict=True)
        for layer, cached in zip(self.layers, of_layers, strict=True):
            masks = (near, causal_near) if layer.layer.is_sliding else (before, causal)
            x, new = layer(x, positions, cached, *masks, True)
            key, value = (
                jax.lax.dynamic_update_slice_in_dim(old, fresh.astype(old.dtype), start, axis=2)
                for old, fresh in zip(cached, new, strict=True)
            )
            keys.append(key)
            values.append(value)
        return self.final_norm(x), KeyValueCache(tuple(keys), tuple(values))

    def decode(
        self,
        canvas: Int[Array, "B C"],
        cache: KeyValueCache,
        length: int | Int[Array, ""],
        real: Bool[Array, "B T"],
        soft: Float[Array, "B C D"] | None = None,
    ) -> Float[Array, "B C D"]:
        """Last hidden states of a canvas, see `logits`; the cache is only read.

        Args:
            canvas: current tokens.
            cache: of the text before the canvas.
            length: places of the cache that are filled; the canvas follows them.
            real: see `encode`.
            soft: self-conditioning, see `soft_embeddings`; None at the first step.
        """
        batch, size = canvas.shape
        place = jnp.arange(real.shape[1])
        before = real & (place < length)
        positions = before.sum(axis=-1, dtype=jnp.int32)[:, None] + jnp.arange(size)
        own = jnp.ones((batch, 1, size), bool)
        near = before & (place > length - self.config.sliding_window)
        x = self._embed(canvas)
        soft = jnp.zeros_like(x) if soft is None else soft.astype(x.dtype)
        x = self.conditioned_norm(x + self.conditioning_mlp(self.conditioning_norm(soft)))
        of_layers = zip(cache.keys, cache.values, strict=True)
        for layer, cached in zip(self.layers, of_layers, strict=True):
            seen = near if layer.layer.is_sliding else before
            x, _ = layer(x, positions, cached, seen[:, None], own, False)
        return self.final_norm(x)

    def soft_embeddings(self, logits: Float[Array, "*B V"]) -> Float[Array, "*B D"]:
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

    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Float32 logits of a canvas's hidden states, whichever positions they are."""
        logits, cap = project(self.embedding, hidden), self.config.softcap
        return logits if cap is None else cap * jnp.tanh(logits / cap)


def empty_cache(config: DiffusionGemmaConfig, batch: int, places: int) -> KeyValueCache:
    """A cache of so many places; each layer is a run by itself, without the leading axis."""

    def zeros() -> tuple[Array, ...]:
        return tuple(
            jnp.zeros((batch, layer.num_kv_heads, places, layer.head_dim), config.dtype)
            for layer in config.layers
        )

    return KeyValueCache(keys=zeros(), values=zeros())
