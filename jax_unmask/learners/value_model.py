"""The diffusion value model: what reward a token of a partly masked canvas is worth."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_unmask.denoisers.transformer import Params
from jax_unmask.learners.states.forward import AttentionBlocks, canvas_hidden
from jax_unmask.learners.states.surrogates import States
from jax_unmask.rollout.trajectory import Prompts


def init_value_model(params: Params, adapters: Params | None = None) -> Params:
    """A value model that starts as a copy of a denoiser, with a head of zeros.

    Its values are therefore 0 at first, and the first advantages those without a value model
    (arXiv 2509.06949, section 4.2). It works for every family: all it takes of a denoiser is its
    hidden states. The denoiser's output projection, which it has no use for, is left out where it
    is not the embedding table.

    Args:
        params: parameters of the denoiser.
        adapters: what is trained of it, if that is not all (see `denoisers.adapters`). The value
            model then has adapters of its own on the same frozen parameters.

    Returns:
        {"backbone": a copy of the denoiser's trunk or of the adapters, "head": float zeros [D]}.
    """
    trunk = {name: tree for name, tree in params.items() if name != "head"}
    table = params["embedding"]
    return {
        "backbone": jax.tree.map(jnp.copy, trunk if adapters is None else adapters),
        "head": jnp.zeros(table.shape[-1], table.dtype if adapters is None else jnp.float32),
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
