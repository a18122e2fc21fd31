"""The unmasking policy network: one small DiT over what the denoiser is sure of.

The published network ("Learning Unmasking Policies for Diffusion Language Models",
arXiv 2512.09106, section 4) sees each position's confidence, whether the position is still masked,
and how far the rollout is; 331,265 parameters. With all options of `NetworkConfig` at their
defaults this module computes the same numbers as the public PyTorch code. The options add
observations; each of them is off by default.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jax_unmask.policies.base import Needs, Observation
from jax_unmask.policies.layers import (
    LAYER_NORM_EPS,
    PRECISION,
    Conditioner,
    dense,
    modulation,
    required,
    rotate_pairs,
    zero_dense,
)
from jax_unmask.policies.order import descending_ranks
from jax_unmask.settings import Settings, setting

INPUTS = ("top_k", "entropy", "position", "rank", "logs", "alphas", "length")
"""Settings that only add linear inputs (`with_inputs`)."""
_RARELY = -1.0
"""Initial bias of taking back, relative to that of filling: at -3, 5 % of tokens per step."""
_CERTAIN = 1e-6
"""Doubts in a token, 1 - its probability, below this one are equal."""


@dataclasses.dataclass(frozen=True)
class NetworkConfig(Settings):
    """Shape and observations of the policy network. The defaults are the published ones."""

    hidden_dim: int = setting(128, "Width d.", ge=1)
    feedforward_dim: int = setting(512, "Width of the MLP.", ge=1)
    num_heads: int = setting(
        2, "Attention heads; hidden_dim / num_heads must be even (rotary pairs).", ge=1
    )
    time_embed_dim: int = setting(128, "Width of the sinusoidal embedding of time t.", ge=2)
    num_blocks: int = setting(1, "Transformer blocks.", ge=1, le=1000)
    time_period: float = setting(
        1.0, "Longest period of the time embedding; 1 makes all frequencies 1.", gt=0, le=1e9
    )
    time: bool = setting(True, "Read t, the fraction of the step budget that is used.")
    mask: bool = setting(True, "Read whether a position is still masked.")
    top_k: int = setting(
        1, "Number of largest probabilities per position that the network reads.", ge=1
    )
    entropy: bool = setting(False, "Also read the entropy of the denoiser's distribution (nats).")
    token_buckets: int = setting(
        0,
        "Also read the candidate token through a learned embedding with this many entries, indexed "
        "by token id modulo token_buckets; 0 for none.",
        ge=0,
    )
    position: bool = setting(
        False,
        "Also read k / L, the fraction of the canvas left of k that is still masked, and whether k "
        "is the leftmost legal position.",
    )
    length: bool = setting(False, "Also read log2(L) / 8, the size of the canvas.")
    position_embedding: int = setting(
        0,
        "Also read which position it is, through a learned embedding with this many entries, at "
        "least the width that the network reads; 0 for none.",
        ge=0,
    )
    pair_attention: int = setting(
        0,
        "Add a learned scalar per head and pair of positions to the attention logits; entries per "
        "side, at least the width that the network reads; 0 for none.",
        ge=0,
    )
    rank: bool = setting(
        False,
        "Also read how many legal positions are more confident, over L, and, with entropy, the sum "
        "of their entropies (the entropy-bounded sampler bounds it); ties go to the first.",
    )
    logs: bool = setting(
        False,
        "Also read log10(1 - p + 1e-4) / 4 of the largest probability p, with position "
        "log2(1 + n) / 8 of the n masked positions left of k, with rank and entropy "
        "log10(s + 0.01) / 2 of the sum s of entropies: on long canvases small doubts count, and "
        "sums are large.",
    )
    rank_attention: tuple[float, ...] = setting(
        (),
        "Add a learned scalar per head to the attention logits from each position to the legal "
        "ones that are more confident; its initial values, one per head, or () for none.",
        ge=-1e4,
        le=1e4,
    )
    candidate_attention: tuple[float, ...] = setting(
        (),
        "Add a learned scalar per head to the attention logits between masked positions that "
        "propose the same candidate token; its initial values, one per head, or () for none.",
        ge=-1e4,
        le=1e4,
    )
    take_back: bool = setting(
        False,
        "Also act on filled positions of the current block: take tokens back, which makes "
        "masks of them again. Reads log(1 - p) of the denoiser's probability of the token that "
        "stands there, and the steps since it was written, over L; attention along equal "
        "candidates includes these tokens.",
    )
    alphas: tuple[float, ...] = setting(
        (),
        "Also read log(alpha) / 3 of the alpha that the policy is told: the smallest and the "
        "largest one that it is trained for; () for a policy of one alpha.",
        gt=0,
        le=1e4,
    )
    hidden_size: int = setting(
        0,
        "Width of the denoiser's last hidden state, of which a linear projection is added to the "
        "input; 0 for none.",
        ge=0,
    )
    initial_bias: float = setting(
        -2.0,
        "Initial bias of the output logit; -2 fills about 12 % of the positions per step.",
        ge=-1e4,
        le=1e4,
    )

    def check(self) -> None:
        self.require(
            self.hidden_dim % (2 * self.num_heads) == 0,
            "hidden_dim",
            f"it is not divisible by 2 * `num_heads` = {2 * self.num_heads}; rotary attention "
            "needs an even width per head",
            "Change one of them",
        )
        for name in ("rank_attention", "candidate_attention"):
            self.require(
                len(getattr(self, name)) in (0, self.num_heads),
                name,
                f"there are `num_heads` = {self.num_heads} heads",
                "Give one value per head, or () for none",
            )

        self.require(
            not self.alphas or (len(self.alphas) == 2 and self.alphas[0] < self.alphas[1]),
            "alphas",
            "it is no range",
            "Give the smallest and the largest alpha, as in (0.1, 30.0), or ()",
        )

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the linear input features, in their order."""
        names = [f"top_probs[{k}]" for k in range(self.top_k)]
        names += ["entropy"] * self.entropy
        names += ["place", "holes_left", "leftmost"] * self.position
        names += ["rank"] * self.rank + ["entropy_before"] * (self.rank and self.entropy)
        if self.logs:
            names += ["log_doubt"] + ["log_holes_left"] * self.position
            names += ["log_entropy_before"] * (self.rank and self.entropy)
        names += ["alpha"] * bool(self.alphas) + ["length"] * self.length
        return (*names, *["doubt", "age"] * self.take_back)

    @property
    def feature_size(self) -> int:
        """Width F of the linear input features."""
        return len(self.feature_names)

    @property
    def needs(self) -> Needs:
        """Observations that this network needs."""
        return Needs(
            top_k=self.top_k,
            entropy=self.entropy,
            hidden=self.hidden_size > 0,
            filled=self.take_back,
        )

    def build(self) -> "UnmaskingNetwork":
        """The linen module of this configuration."""
        return UnmaskingNetwork(self)

    def observe(self, obs: Observation) -> "NetworkInputs":
        """The inputs of the network; t is step / L. A `ValueError` if the observation lacks any."""
        if obs.top_probs.shape[-1] < self.top_k:
            raise ValueError(
                f"Observation.top_probs holds {obs.top_probs.shape[-1]} probabilities per "
                f"position, but the network reads top_k={self.top_k}"
            )
        width = obs.masked.shape[-1]
        rank = confidence_rank(obs.confidence, obs.legal)  # Not computed where nothing reads it.
        features = {f"top_probs[{k}]": obs.top_probs[..., k] for k in range(self.top_k)}
        if self.logs:
            doubt = jnp.maximum(1 - obs.top_probs[..., 0].astype(jnp.float32), 0.0)
            features["log_doubt"] = jnp.log10(doubt + 1e-4) / 4
        if self.entropy:
            features["entropy"] = entropy = required(obs.entropy, "entropy", "entropy=True")
            before = rank[..., None, :] < rank[..., :, None]
            total = jnp.sum(jnp.where(before, entropy[..., None, :], 0.0), axis=-1)
            features["entropy_before"] = total
            features["log_entropy_before"] = jnp.log10(total + 0.01) / 2
        if self.position:
            features |= position_features(obs.masked, obs.legal)
        features["rank"] = rank / width
        if self.alphas:
            alpha = required(obs.alpha, "alpha", "alphas").astype(jnp.float32)
            features["alpha"] = jnp.log(alpha)[..., None] / 3
        features["length"] = jnp.float32(math.log2(width) / 8)
        candidate = obs.candidate
        if self.take_back:
            if obs.filled is None:
                raise ValueError("take_back=True, but the observation lacks filled")
            candidate = jnp.where(obs.masked, candidate, obs.filled.token)
            # A denoiser mostly repeats what stands: doubts show in how far from 1 it is.
            doubt = jnp.log(jnp.maximum(1.0 - obs.filled.probability, _CERTAIN))
            features["doubt"] = doubt / -math.log(_CERTAIN)
            features["age"] = obs.filled.age / width
        looks_at_candidates = self.token_buckets or self.candidate_attention
        return NetworkInputs(
            masked=obs.masked,
            t=self.time * obs.step.astype(jnp.float32) / width,
            features=jnp.stack(
                [
                    jnp.broadcast_to(features[name].astype(jnp.float32), obs.masked.shape)
                    for name in self.feature_names
                ],
                axis=-1,
            ),
            candidate=candidate if looks_at_candidates else None,
            hidden=obs.hidden if self.hidden_size else None,
            rank=rank if self.rank_attention else None,
        )

    def dummy_inputs(self, width: int) -> "NetworkInputs":
        """One row of zeros, to initialise parameters with."""
        return NetworkInputs(
            masked=jnp.ones((1, width), bool),
            t=jnp.zeros((1,), jnp.float32),
            features=jnp.zeros((1, width, self.feature_size), jnp.float32),
            candidate=jnp.zeros((1, width), jnp.int32),
            hidden=jnp.zeros((1, width, self.hidden_size), jnp.float32),
            rank=jnp.zeros((1, width), jnp.int32),
        )


@struct.dataclass
class NetworkInputs:
    """Inputs of a policy network: rows of W positions (the canvas, or the current block).

    Attributes:
        masked: the position's token is still the mask.
        t: fraction of the step budget used, step / L.
        features: linear input features; the first `top_k` are probabilities.
        candidate, hidden: candidate tokens and last hidden states of the denoiser; with `take_back`
            a filled position's candidate is the token that stands there.
        rank: order of confidence (`confidence_rank`).
    """

    masked: Bool[Array, "*B W"]
    t: Float[Array, "*B"]
    features: Float[Array, "*B W F"] | None = None
    candidate: Int[Array, "*B W"] | None = None
    hidden: Float[Array, "*B W D"] | None = None
    rank: Int[Array, "*B W"] | None = None


def confidence_rank(
    confidence: Float[Array, "*B W"], legal: Bool[Array, "*B W"]
) -> Int[Array, "*B W"]:
    """Number of legal positions that are more confident than each legal one; W at other positions.

    Of equally confident positions the first counts as more confident.
    """
    return jnp.where(legal, descending_ranks(confidence, legal), confidence.shape[-1])


def position_features(
    masked: Bool[Array, "*B L"], legal: Bool[Array, "*B L"]
) -> dict[str, Float[Array, "*B L"]]:
    """Features of where each position k lies.

    `place` is k / L; `holes_left` the masked fraction of the positions left of k (0 at k = 0) and
    `log_holes_left` log2(1 + n) / 8 of their number n; `leftmost` whether k is the leftmost legal.
    """
    index = jnp.arange(masked.shape[-1], dtype=jnp.float32)
    holes = masked.astype(jnp.float32)
    left = jnp.cumsum(holes, axis=-1) - holes
    return {
        "place": index / masked.shape[-1],
        "holes_left": left / jnp.maximum(index, 1.0),
        "log_holes_left": jnp.log2(1 + left) / 8,
        "leftmost": legal & (jnp.cumsum(legal, axis=-1) == 1),
    }


def with_inputs(params: Any, saved: NetworkConfig, network: NetworkConfig) -> Any:
    """Parameters of a network that reads what `saved` reads, and more, and computes the same.

    Weights of further inputs are 0. A `ValueError` if `network` lacks an input of `saved`.
    """
    names = network.feature_names
    if missing := [name for name in saved.feature_names if name not in names]:
        raise ValueError(f"the network lacks the inputs {', '.join(missing)}")
    leaf = params["features"]
    places = np.array([names.index(name) for name in saved.feature_names])
    kernel = jnp.zeros((len(names), leaf["kernel"].shape[1]), leaf["kernel"].dtype)
    kernel = kernel.at[places].set(leaf["kernel"])
    return {**params, "features": {**leaf, "kernel": kernel}}


class Block(nn.Module):
    """A DiT block: modulated attention and MLP, each branch scaled by (1 + alpha).

    Unlike a usual AdaLN-zero block it is not the identity at the start, because the gate is
    1 + alpha and not alpha.
    """

    config: NetworkConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "N W d"],
        conditions: Float[Array, "N 2 d"],
        masked: Bool[Array, "N W"],
        same_candidate: Bool[Array, "N W W"] | None,
        more_confident: Bool[Array, "N W W"] | None,
    ) -> Float[Array, "N W d"]:
        cfg = self.config
        rows, width, dim = x.shape
        scale1, shift1, gate1, scale2, shift2, gate2 = modulation(
            zero_dense(6 * dim, "modulation"), conditions, masked, 6
        )
        h = nn.LayerNorm(epsilon=LAYER_NORM_EPS, name="norm1")(x) * (1 + scale1) + shift1
        qkv = dense(3 * dim, dim, "qkv")(h.reshape(rows * width, dim))
        qkv = qkv.reshape(rows, width, 3, cfg.num_heads, dim // cfg.num_heads)
        query, key, value = jnp.moveaxis(qkv, (2, 3), (0, 2))
        query, key = rotate_pairs(query) / math.sqrt(dim // cfg.num_heads), rotate_pairs(key)
        logits = jnp.einsum("nhqd,nhkd->nhqk", query, key, precision=PRECISION)
        if cfg.pair_attention:
            shape = cfg.num_heads, cfg.pair_attention, cfg.pair_attention
            table = self.param("pair_bias", nn.initializers.zeros, shape)
            logits = logits + table[:, :width, :width]
        for name, pairs, start in (
            ("candidate_bias", same_candidate, cfg.candidate_attention),
            ("rank_bias", more_confident, cfg.rank_attention),
        ):
            if pairs is not None:
                bias = self.param(name, lambda _, start=start: jnp.asarray(start, jnp.float32))
                # A product: XLA takes four times as long on CPUs for a choice in front of softmax.
                logits = logits + pairs[:, None].astype(logits.dtype) * bias[:, None, None]
        weights = jax.nn.softmax(logits, axis=-1)
        mixed = jnp.einsum("nhqk,nhkd->nqhd", weights, value, precision=PRECISION)
        mixed = dense(dim, dim, "out")(mixed.reshape(rows * width, dim)).reshape(x.shape)
        x = x + mixed * (1 + gate1)

        h = nn.LayerNorm(epsilon=LAYER_NORM_EPS, name="norm2")(x) * (1 + scale2) + shift2
        h = dense(cfg.feedforward_dim, dim, "up")(h.reshape(rows * width, dim))
        h = dense(dim, cfg.feedforward_dim, "down")(nn.gelu(h, approximate=False))
        return x + h.reshape(x.shape) * (1 + gate2)


class UnmaskingNetwork(nn.Module):
    """Maps observations of a row to one logit per position: to fill it, or to take it back.

    Rows never see each other; within a row every position attends to every other, masked or not.
    """

    config: NetworkConfig

    @nn.compact
    def __call__(self, inputs: NetworkInputs) -> Float[Array, "*B W"]:
        """Returns float32 logits; a larger logit means that the position should be filled.

        With `take_back` that of a filled position means that its token should be taken back.
        """
        cfg = self.config
        lead, width = inputs.masked.shape[:-1], inputs.masked.shape[-1]
        masked = inputs.masked.reshape(-1, width).astype(bool)
        rows = masked.shape[0]
        features = required(inputs.features, "features", "always")
        x = dense(cfg.hidden_dim, cfg.feature_size, "features")(
            features.reshape(rows, width, cfg.feature_size).astype(jnp.float32)
        )
        if cfg.token_buckets:
            candidate = required(inputs.candidate, "candidate", "token_buckets > 0")
            shape = cfg.token_buckets, cfg.hidden_dim
            table = self.param("token_embedding", nn.initializers.normal(0.1), shape)
            x = x + table[candidate.reshape(rows, width) % cfg.token_buckets]
        for name in ("position_embedding", "pair_attention"):
            if 0 < getattr(cfg, name) < width:
                raise ValueError(
                    f"{name}={getattr(cfg, name)} is less than the {width} positions that the "
                    f"network sees; give at least {width}"
                )
        if cfg.position_embedding:
            shape = cfg.position_embedding, cfg.hidden_dim
            table = self.param("position_embedding", nn.initializers.normal(0.1), shape)
            x = x + table[:width]
        if cfg.hidden_size:
            hidden = required(inputs.hidden, "hidden", "hidden_size > 0")
            x = x + dense(cfg.hidden_dim, cfg.hidden_size, "hidden")(
                hidden.reshape(rows, width, cfg.hidden_size).astype(jnp.float32)
            )
        same_candidate = None
        if cfg.candidate_attention:
            candidate = required(inputs.candidate, "candidate", "candidate_attention")
            candidate = candidate.reshape(rows, width)
            same_candidate = candidate[:, :, None] == candidate[:, None, :]
            if not cfg.take_back:
                same_candidate &= masked[:, :, None] & masked[:, None, :]
        more_confident = None
        if cfg.rank_attention:
            rank = required(inputs.rank, "rank", "rank_attention").reshape(rows, width)
            more_confident = rank[:, None, :] < rank[:, :, None]
        conditions = Conditioner(
            cfg.hidden_dim, cfg.time_embed_dim, cfg.time_period, name="conditioner"
        )(inputs.t.reshape(rows))
        seen = masked if cfg.mask else jnp.ones_like(masked)
        for index in range(cfg.num_blocks):
            x = Block(cfg, name=f"block_{index}")(
                x, conditions, seen, same_candidate, more_confident
            )
        x = nn.LayerNorm(epsilon=LAYER_NORM_EPS, name="final_norm")(x)
        logits = dense(1, cfg.hidden_dim, "output", initial_bias=cfg.initial_bias)(x)[..., 0]
        if cfg.take_back:
            bias = cfg.initial_bias + _RARELY
            back = dense(1, cfg.hidden_dim, "take_back", initial_bias=bias)(x)[..., 0]
            logits = jnp.where(masked, logits, back)
        return logits.reshape(*lead, width)
