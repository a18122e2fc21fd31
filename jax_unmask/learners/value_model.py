"""The diffusion value model: what reward a token of a partly masked canvas is worth."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_unmask.denoisers.transformer import Params
from jax_unmask.learners.surrogates import States
from jax_unmask.learners.trace_forward import AttentionBlocks, canvas_hidden
from jax_unmask.rollout.trajectory import Prompts


def init_value_model(params: Params) -> Params:
    """A value model that starts as a copy of a denoiser, with a head of zeros.

    Its values are therefore 0 at first, and the first advantages those without a value model
    (arXiv 2509.06949, section 4.2). It works for every family: all it takes of a denoiser is its
    hidden states. The denoiser's output projection, which it has no use for, is left out where it
    is not the embedding table.

    Args:
        params: parameters of the denoiser.

    Returns:
        {"backbone": a copy of the denoiser's trunk, "head": float zeros [D]}.
    """
    backbone = {name: tree for name, tree in params.items() if name != "head"}
    width = params["embedding"].shape[-1]
    return {
        "backbone": jax.tree.map(jnp.copy, backbone),
        "head": jnp.zeros(width, params["embedding"].dtype),
    }


def token_values(
    denoiser: Any,
    params: Params,
    prompts: Prompts,
    tokens: Int[Array, "C L"],
    states: States,
    blocks: AttentionBlocks | None = None,
) -> Float[Array, "C L"]:
    """Values of all canvas positions of C states, float32; those of masked positions count.

    Args: as of `trace_forward.canvas_hidden`, with `params` of `init_value_model`.
    """
    trunk = params["backbone"]
    if not denoiser.config.tie_embeddings:
        # The module asks for its projection though nothing reads it: none of this is executed.
        trunk = {**trunk, "head": jnp.zeros_like(trunk["embedding"])}
    hidden = canvas_hidden(denoiser, trunk, prompts, tokens, states, blocks)
    return hidden.astype(jnp.float32) @ params["head"].astype(jnp.float32)
