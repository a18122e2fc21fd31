"""The unmasking policy as a PyTorch module, in the layout of the method's public code.

Tensor names are those of `model.safetensors`, so `load_state_dict` takes the file as it is. This
file imports nothing of the package: it can be copied beside other code.
"""

import json
import math
import pathlib
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

_EXTRAS = {
    "entropy": False,
    "token_buckets": 0,
    "position": False,
    "position_embedding": 0,
    "pair_attention": 0,
    "rank": False,
    "logs": False,
    "rank_attention": (),
    "candidate_attention": (),
    "alphas": (),
    "time": True,
    "mask": True,
}


class Observation(NamedTuple):
    """Inputs of the policy at one step: B rows of W positions (the canvas, or the current block).

    Attributes:
        candidate: token that would be written at each position, int [B, W].
        confidence: its probability, float [B, W].
        top_probs: the largest probabilities of each position, descending, float [B, W, K].
        entropy: of the denoiser's distribution in nats, [B, W].
        masked: position still holds the mask token, bool [B, W].
        legal: position may be filled now, bool [B, W].
        t: denoiser forwards that the row has used over the length of the whole canvas, [B].
    """

    candidate: torch.Tensor
    confidence: torch.Tensor
    top_probs: torch.Tensor
    entropy: torch.Tensor
    masked: torch.Tensor
    legal: torch.Tensor
    t: torch.Tensor


def observe(
    logits: torch.Tensor,
    masked: torch.Tensor,
    legal: torch.Tensor,
    t: torch.Tensor,
    *,
    top_k: int,
    mask_id: int,
) -> Observation:
    """The observation of a denoiser's logits [B, W, V]; the mask token is never a candidate."""
    log_probs = F.log_softmax(logits.float(), dim=-1)
    probs = log_probs.exp()
    allowed = probs.clone()
    allowed[..., mask_id] = -1.0
    confidence, candidate = allowed.max(dim=-1)
    top = probs.topk(max(top_k, 1), dim=-1).values
    entropy = -(probs * log_probs.clamp_min(-1e30)).sum(dim=-1)
    return Observation(candidate, confidence, top, entropy, masked, legal, t)


class UnmaskingPolicy(nn.Module):
    """A learned policy: which masked positions to fill, from an observation.

    Attributes:
        made_for: model, task, canvas and block length that it was trained for, if known; the first
            of several.
        reads_canvas: it reads every position of the canvas, not those of a block alone.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        if config.get("policy_type") != "dit_confidence":
            raise ValueError(
                f"policy_type={config.get('policy_type')!r} has no PyTorch module here; only "
                "'dit_confidence' has"
            )
        own = {"distribution": "bernoulli_argmax", **config.get("jax_unmask", {})}
        extras = {**_EXTRAS, **own.get("network", {})}
        unknown = [name for name in extras if name not in _EXTRAS and name != "initial_bias"]
        if unknown:
            raise ValueError(f"networks with {', '.join(unknown)} have no PyTorch module here")
        places = own.get("made_for", {})
        self.made_for: dict[str, Any] = places[0] if isinstance(places, list) else places
        self.distribution: str = self.made_for.get("distribution", own["distribution"])
        self.reads_canvas: bool = own.get("context", "full") == "full"
        self.temperature = float(own.get("temperature", 1.0))
        self.scale = float(own.get("scale", 1.0))
        self.stop_logit = float(own.get("dpls_stop_logit", 0.0))
        self.alpha = float(own.get("alpha", 1.0))
        self.top_k = int(config["confidences_top_p"])
        self.base_policy = Network(config, extras)

    @classmethod
    def from_directory(cls, directory: str | pathlib.Path) -> "UnmaskingPolicy":
        """The policy of a directory that this package or the public code wrote."""
        directory = pathlib.Path(directory)
        policy = cls(json.loads((directory / "policy_config.json").read_text(encoding="utf-8")))
        policy.load_state_dict(load_file(directory / "model.safetensors"), strict=True)
        return policy.eval()

    def forward(self, obs: Observation) -> torch.Tensor:
        """Logits [B, W]; a larger one means that the position should be filled."""
        out: torch.Tensor = self.base_policy(obs, self.alpha) / self.temperature
        return out

    @torch.no_grad()
    def fill(self, obs: Observation, generator: torch.Generator | None = None) -> torch.Tensor:
        """The positions to fill, bool [B, W]: at least one of each row that has a legal one.

        Deterministic where the policy acts by a threshold; else drawn from the generator.
        """
        logits = self(obs).masked_fill(~obs.legal, -torch.inf)
        if self.distribution == "dpls":
            return self._dpls(logits, obs.legal, generator)
        probs = (self.scale * torch.sigmoid(logits)).clamp(max=1.0)
        bar = torch.full_like(probs, 0.5)
        if self.distribution != "threshold":
            bar = torch.rand(probs.shape, generator=generator, device=probs.device)
        return self._with_best((probs > bar) & obs.legal, logits, obs.legal)

    def _dpls(
        self, logits: torch.Tensor, legal: torch.Tensor, generator: torch.Generator | None
    ) -> torch.Tensor:
        def gumbel(*shape: int) -> torch.Tensor:
            uniform = torch.rand(shape, generator=generator, device=logits.device)
            return -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))

        rows, width = logits.shape
        first = self._with_best(torch.zeros_like(legal), logits + gumbel(rows, width), legal)
        stop = self.stop_logit + gumbel(rows, 1)
        return first | ((logits + gumbel(rows, width) > stop) & legal)

    @staticmethod
    def _with_best(fill: torch.Tensor, logits: torch.Tensor, legal: torch.Tensor) -> torch.Tensor:
        """Adds the legal position of the largest logit in rows where nothing is filled."""
        best = F.one_hot(logits.argmax(dim=-1), logits.shape[-1]).bool() & legal
        return torch.where(fill.any(dim=-1, keepdim=True), fill, best)


class Network(nn.Module):
    """A small transformer over positions, conditioned on the mask bit and the time."""

    def __init__(self, config: dict[str, Any], extras: dict[str, Any]) -> None:
        super().__init__()
        self.extras = extras
        self.top_k = int(config["confidences_top_p"])
        width = int(config["hidden_dim"])
        self.time_dim, self.period = int(config["time_embed_dim"]), float(config["time_period"])
        entropy, rank = bool(extras["entropy"]), bool(extras["rank"])
        position, before = bool(extras["position"]), rank and entropy
        features = self.top_k + entropy + 3 * position + rank + before
        features += bool(extras["logs"]) * (1 + position + before) + bool(extras["alphas"])
        self.time_mlp = nn.Sequential(
            nn.Linear(self.time_dim, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.mask_embedding = nn.Embedding(2, width)
        self.confidence_proj = nn.Linear(features, width)
        if extras["token_buckets"]:
            self.token_embedding = nn.Embedding(extras["token_buckets"], width)
        if extras["position_embedding"]:
            self.position_embedding = nn.Embedding(extras["position_embedding"], width)
        self.transformer_blocks = nn.ModuleList(
            Block(width, int(config["feedforward_dim"]), int(config["num_heads"]), extras)
            for _ in range(int(config["num_blocks"]))
        )
        self.final_norm = nn.LayerNorm(width)
        self.output_proj = nn.Linear(width, 1)

    def forward(self, obs: Observation, alpha: float) -> torch.Tensor:
        """Logits [B, W] at temperature 1."""
        extras, width = self.extras, obs.masked.shape[1]
        rank = _rank(obs.confidence, obs.legal)
        x = self.confidence_proj(self._features(obs, rank, alpha))
        if extras["token_buckets"]:
            x = x + self.token_embedding(obs.candidate % extras["token_buckets"])
        if extras["position_embedding"]:
            x = x + self.position_embedding.weight[:width]
        pairs = {}
        if len(extras["candidate_attention"]):
            same = obs.candidate[:, :, None] == obs.candidate[:, None, :]
            pairs["candidate_bias"] = same & obs.masked[:, :, None] & obs.masked[:, None, :]
        if len(extras["rank_attention"]):
            pairs["rank_bias"] = rank[:, None, :] < rank[:, :, None]
        time = self.time_mlp(self._time(obs.t if extras["time"] else torch.zeros_like(obs.t)))
        seen = obs.masked if extras["mask"] else torch.ones_like(obs.masked)
        condition = self.mask_embedding(seen.long()) + time[:, None]
        for block in self.transformer_blocks:
            x = block(x, condition, pairs)
        out: torch.Tensor = self.output_proj(self.final_norm(x))[..., 0]
        return out

    def _features(self, obs: Observation, rank: torch.Tensor, alpha: float) -> torch.Tensor:
        extras, length = self.extras, obs.masked.shape[1]
        parts = [obs.top_probs[..., : self.top_k]]
        if extras["entropy"]:
            parts.append(obs.entropy[..., None])
        holes = obs.masked.float()
        left = holes.cumsum(dim=-1) - holes
        if extras["position"]:
            index = torch.arange(length, device=obs.masked.device, dtype=torch.float32)
            leftmost = obs.legal & (obs.legal.long().cumsum(dim=-1) == 1)
            places = [(index / length).expand_as(holes), left / index.clamp(min=1.0)]
            parts.append(torch.stack([*places, leftmost.float()], dim=-1))
        if extras["rank"]:
            parts.append(rank[..., None] / length)
            if extras["entropy"]:
                before = rank[:, None, :] < rank[:, :, None]
                parts.append((before * obs.entropy[:, None, :]).sum(dim=-1)[..., None])
        if extras["logs"]:
            doubt = 1 - obs.top_probs[..., :1].float()
            total = parts[-1]
            parts.append(torch.log10(doubt.clamp(min=0.0) + 1e-4) / 4)
            if extras["position"]:
                parts.append(torch.log2(1 + left)[..., None] / 8)
            if extras["rank"] and extras["entropy"]:
                parts.append(torch.log10(total + 0.01) / 2)
        if len(extras["alphas"]):
            parts.append(torch.full_like(obs.entropy, math.log(alpha) / 3)[..., None])
        return torch.cat([part.float() for part in parts], dim=-1)

    def _time(self, t: torch.Tensor) -> torch.Tensor:
        """Cosines, then sines, rounded to bfloat16 as the public code does."""
        half = self.time_dim // 2
        steps = torch.arange(half, dtype=torch.float32, device=t.device)
        angles = t.float()[:, None] * torch.exp(-math.log(self.period) * steps / half)
        parts = [angles.cos(), angles.sin()]
        if self.time_dim % 2:
            parts.append(torch.zeros_like(angles[:, :1]))
        return torch.cat(parts, dim=-1).bfloat16().float()


class Block(nn.Module):
    """Attention and MLP, each modulated by the condition and scaled by (1 + gate)."""

    inv_freq: torch.Tensor

    def __init__(self, width: int, mlp_width: int, heads: int, extras: dict[str, Any]) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.linear1, self.linear2 = nn.Linear(width, mlp_width), nn.Linear(mlp_width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.ada_conditioning = nn.Linear(width, 6 * width)
        exponent = torch.arange(0, width // heads, 2, dtype=torch.float32) / (width // heads)
        self.register_buffer("inv_freq", 10_000.0**-exponent)
        if extras["pair_attention"]:
            side = extras["pair_attention"]
            self.pair_bias = nn.Parameter(torch.zeros(heads, side, side))
        for kind in ("rank", "candidate"):
            if len(extras[f"{kind}_attention"]):
                setattr(self, f"{kind}_bias", nn.Parameter(torch.zeros(heads)))

    def forward(
        self, x: torch.Tensor, condition: torch.Tensor, pairs: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        rows, width, dim = x.shape
        parts = self.ada_conditioning(condition).chunk(6, dim=-1)
        scale1, shift1, gate1, scale2, shift2, gate2 = parts
        h = self.norm1(x) * (1 + scale1) + shift1
        query, key, value = (
            projection(h).view(rows, width, self.heads, -1).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        logits = self._rotate(query) @ self._rotate(key).transpose(-1, -2)
        logits = logits / math.sqrt(dim // self.heads)
        if hasattr(self, "pair_bias"):
            logits = logits + self.pair_bias[:, :width, :width]
        for name, where in pairs.items():
            logits = logits + where[:, None] * getattr(self, name)[:, None, None]
        mixed = (logits.softmax(dim=-1) @ value).transpose(1, 2).reshape(rows, width, dim)
        x = x + self.out_proj(mixed) * (1 + gate1)
        h = self.norm2(x) * (1 + scale2) + shift2
        out: torch.Tensor = x + self.linear2(F.gelu(self.linear1(h))) * (1 + gate2)
        return out

    def _rotate(self, x: torch.Tensor) -> torch.Tensor:
        """Rotary embedding of even/odd pairs."""
        angles = torch.arange(x.shape[-2], device=x.device)[:, None] * self.inv_freq
        cos, sin, even, odd = angles.cos(), angles.sin(), x[..., ::2], x[..., 1::2]
        return torch.cat([even * cos - odd * sin, even * sin + odd * cos], dim=-1)


def _rank(confidence: torch.Tensor, legal: torch.Tensor) -> torch.Tensor:
    """Number of legal positions more confident; W at illegal ones. The first of equals wins."""
    scores = torch.where(legal, -confidence, torch.inf)
    order = scores.argsort(dim=-1, stable=True)
    return torch.where(legal, order.argsort(dim=-1), confidence.shape[-1])
