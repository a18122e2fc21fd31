"""Hidden states of partly masked canvases, as the denoiser saw them in the rollout."""

from __future__ import annotations

from typing import Any, cast

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_unmask.denoisers.transformer import Params
from jax_unmask.learners.surrogates import States
from jax_unmask.rollout.trajectory import Prompts


def canvas_hidden(
    denoiser: Any, params: Params, prompts: Prompts, tokens: Int[Array, "C L"], states: States
) -> Float[Array, "C L D"]:
    """Last hidden states of the canvas positions of C states.

    Args:
        denoiser: the dLLM.
        params: its parameters.
        prompts: prompt of each state.
        tokens: final canvas of the response that each state belongs to.
        states: which positions are masked.
    """
    mask_id = denoiser.config.mask_token_id
    prompt = prompts.tokens
    if states.prompt_masked is not None:
        prompt = jnp.where(states.prompt_masked, mask_id, prompt)
    noisy = jnp.where(states.masked, mask_id, tokens)
    real = jnp.concatenate([prompts.mask, jnp.ones(tokens.shape, bool)], axis=1)
    hidden = denoiser.apply(
        {"params": params},
        jnp.concatenate([prompt, noisy], axis=1),
        attention_mask=real,
        method="hidden",
    )
    return cast(Array, hidden)[:, prompt.shape[1] :]
