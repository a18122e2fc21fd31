"""Checks of a rollout by shapes alone, before any weights are there."""

from typing import Any

import flax.errors
import jax
import jax.numpy as jnp

from jax_unmask.denoisers.config import DenoiserConfig
from jax_unmask.denoisers.transformer import Denoiser, abstract_params
from jax_unmask.policies.base import Policy
from jax_unmask.rollout.loop import rollout, row_keys
from jax_unmask.rollout.trajectory import Prompts, RolloutSettings
from jax_unmask.settings import SettingError


def check_rollout(
    text: str,
    policy: Policy,
    params: Any,
    denoiser: DenoiserConfig,
    settings: RolloutSettings,
    *,
    key: str = "policy",
) -> None:
    """Traces a rollout of the shortest prompt.

    Args:
        text: the policy, as it was named.
        policy, params: the policy, its parameters and settings.
        denoiser: shape of the denoiser.
        settings: shape of the rollout.
        key: names the policy in its mistakes.

    Raises:
        SettingError: the canvas is too long for the denoiser, the cache is none for its attention,
            or the policy cannot act there.
    """
    settings.require(
        settings.gen_length < denoiser.max_length,
        "gen_length",
        f"it leaves no room for prompts in the denoiser's length, {denoiser.max_length}",
        "Lower it",
    )
    if settings.cache is not None:
        try:
            settings.cache.check_fits(denoiser)
        except ValueError as error:
            remedy = "Choose another one, or none"
            raise SettingError("cache", str(settings.cache), str(error), remedy) from error
    rows = settings.slot_groups
    tokens: Any = jax.ShapeDtypeStruct((rows, 1), jnp.int32)
    mask: Any = jax.ShapeDtypeStruct((rows, 1), jnp.bool_)
    keys = jax.eval_shape(lambda key: row_keys(key, rows), jax.random.key(0))
    weights, prompts = abstract_params(denoiser), Prompts(tokens, mask)
    try:
        rollout.eval_shape(Denoiser(denoiser), weights, policy, params, prompts, keys, settings)
    except (ValueError, TypeError, flax.errors.FlaxError) as error:
        problem = f"it cannot act on a canvas of {settings.gen_length} of this denoiser: {error}"
        remedy = "Choose another policy, or the canvas that it was trained for"
        raise SettingError(key, text, problem.splitlines()[0].rstrip("."), remedy) from error
