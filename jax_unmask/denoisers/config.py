"""What a denoiser looks like: sizes, numerics and special tokens."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike


@dataclasses.dataclass(frozen=True)
class DenoiserConfig:
    """Static description of a denoiser; hashable, so it can be a static argument of `jax.jit`.

    A family (a published checkpoint format) is a mapping from its own `config.json` to these
    fields; the transformer itself reads nothing else.

    Attributes:
        family: checkpoint format that the weights are read from and written to, e.g. "llada".
        vocab_size: width V of the logits, which is also the number of embedding rows.
        hidden_size: width D of the residual stream.
        num_layers: transformer blocks.
        num_heads: query heads.
        num_kv_heads: key and value heads; each serves num_heads / num_kv_heads query heads.
        head_dim: width of a head; even, because rotary embeddings turn pairs.
        intermediate_size: width of the gated MLP.
        rope_theta: base of the rotary frequencies.
        norm_eps: epsilon of every RMSNorm.
        max_length: longest sequence (prompt and canvas) that the model was made for.
        tie_embeddings: the output projection is the embedding table.
        mask_token_id: id of `[MASK]`.
        eos_token_id: id that ends a response.
        pad_token_id: id that fills the left of shorter prompts (never attended).
        bos_token_id: id that starts a text, if the family has one.
        dtype: floating type of the computation. Norm statistics, rotations, softmax and logits
            are float32 whatever it is.
        param_dtype: floating type of the parameters.
    """

    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rope_theta: float
    norm_eps: float
    max_length: int
    tie_embeddings: bool
    mask_token_id: int
    eos_token_id: int
    pad_token_id: int
    bos_token_id: int | None = None
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "intermediate_size",
            "max_length",
        ):
            _require_int(name, getattr(self, name))
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} is not a multiple of num_kv_heads="
                f"{self.num_kv_heads}; every key head serves the same number of query heads"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"head_dim={self.head_dim} must be even: rotary embeddings turn pairs of features"
            )
        for name in ("rope_theta", "norm_eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")
        self._check_tokens()
        for name in ("dtype", "param_dtype"):
            # One canonical object per type, so that equal configs hash alike ("bfloat16",
            # jnp.bfloat16 and np.dtype("bfloat16") are three different keys otherwise).
            dtype = np.dtype(getattr(self, name))
            if not jnp.issubdtype(dtype, jnp.floating):
                raise ValueError(f"{name}={dtype} must be a floating type such as float32")
            object.__setattr__(self, name, dtype)

    def _check_tokens(self) -> None:
        for name in ("mask_token_id", "eos_token_id", "pad_token_id", "bos_token_id"):
            token = getattr(self, name)
            if token is None and name == "bos_token_id":
                continue
            _require_int(name, token)
            if not 0 <= token < self.vocab_size:
                raise ValueError(
                    f"{name}={token} is not in the vocabulary of vocab_size={self.vocab_size} "
                    "tokens"
                )
        for name in ("eos_token_id", "pad_token_id", "bos_token_id"):
            if getattr(self, name) == self.mask_token_id:
                raise ValueError(
                    f"{name}={self.mask_token_id} is also mask_token_id; a text that holds it "
                    "could not be told from an unfinished one"
                )


def _require_int(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name}={value!r} must be an integer")
