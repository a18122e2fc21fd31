"""Calibration of a policy: its forwards by the alpha that it is told. Answers are not needed."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jax_unmask.environment.bundle import Bundle, load_task
from jax_unmask.environment.settings import RunSettings
from jax_unmask.evaluation.problems import load_problems, rollout_settings
from jax_unmask.policies import LearnedPolicy
from jax_unmask.policies.base import Params
from jax_unmask.policies.calibration import Calibration
from jax_unmask.rollout import Prompts, rollout, row_keys
from jax_unmask.rollout.trajectory import check_finite
from jax_unmask.runtime import streams
from jax_unmask.runtime.compilation import announced
from jax_unmask.runtime.progress import Jobs

logger = logging.getLogger(__name__)

# Scales beyond the alphas. A scale s of deterministic actions fills where the probability is above
# 1 / 2s. Policies are sure of what they do: near one half (where that nears 1, and one position is
# filled per step) the scales are dense, above 1 far apart; the last one fills all at one time.
_SLOWER = (0.01, 0.50005, 0.5001, 0.5002, 0.50035, 0.5005, 0.502, 0.55, 0.75)
_FASTER = (8.0, 64.0, 512.0, 4096.0, 1e9)


def calibrate(
    config: RunSettings,
    bundle: Bundle,
    policy: LearnedPolicy,
    params: Params,
    *,
    name: str,
    block_length: int,
    points: int,
) -> Calibration:
    """Counts the forwards of a policy at alphas spread evenly, on a logarithmic scale.

    Beyond them, slower and faster, its probabilities are scaled. All settings share one compiled
    program. Responses are not checked.

    Args:
        config: names the prompts (`task`, `eval.split`, `eval.num_problems`), the canvas and the
            cache; `eval.batch_size` rows are rolled out at one time.
        bundle: denoiser, tokenizer and task.
        policy: the policy, which can be told alpha.
        params: its parameters and settings.
        name: what the environment is to be called.
        block_length: of the rollouts.
        points: number of alphas, at least 2.
    """
    task = load_task(config, prompt_style=config.eval.prompt_style)
    prompts = load_problems(config, bundle, task, config.eval.split).prompts
    settings = rollout_settings(config, bundle, block_length, config.sampling.cache)
    shards = bundle.placement.shards
    rows = -(-min(config.eval.batch_size, len(prompts.tokens)) // shards) * shards
    settings = dataclasses.replace(settings, record=False, slots=0, slot_groups=shards)
    key = streams.stream(streams.root(config.seed), "sampling")
    low, high = policy.alphas
    # Rounded, the ends may lie outside.
    alphas = np.clip(np.geomspace(low, high, points), low, high).tolist()
    own = float(params["scale"])
    places = [(alpha, own) for alpha in alphas]
    if policy.distribution != "dpls":  # It has no probabilities to scale.
        slower = [(low, own * factor) for factor in _SLOWER]
        places = slower + places + [(high, own * factor) for factor in _FASTER]
    nfe: list[float] = []
    what = f"rollouts of learned with {bundle.name}"
    compiling: contextlib.AbstractContextManager[None] = announced(what)
    jobs = Jobs(len(places), "calibration")
    for number, (alpha, scale) in enumerate(places, start=1):
        told, forwards = {**params, **policy.params(alpha=alpha, scale=scale)}, []
        for batch, identities in _batches(prompts, rows):
            with bundle.placement.active(), compiling:
                done = rollout(
                    bundle.denoiser,
                    bundle.params,
                    policy,
                    told,
                    bundle.placement.global_rows(batch),
                    row_keys(key, bundle.placement.global_rows(identities)),
                    settings,
                )
            compiling = contextlib.nullcontext()
            used, *scores = bundle.placement.fetch((done.nfe, done.confidence, done.step_map))
            check_finite(*scores)
            forwards.append(np.asarray(used)[np.asarray(batch.present)])
        nfe.append(float(np.concatenate(forwards).mean()))
        found = f"alpha {alpha:.4g}, scale {scale:.4g}: {nfe[-1]:.3f} forwards"
        line = jobs.done(number, f"{found} of {settings.gen_length}")
        if not jax.process_index():
            logger.info("%s", line)
    environment: dict[str, str | int | float] = {
        "denoiser": bundle.name,
        "task": task.name,
        **settings.environment,
        "distribution": policy.distribution,
    }
    alphas, scales = map(tuple, zip(*places, strict=True))
    return Calibration(name, environment, alphas, scales, tuple(nfe), len(prompts.tokens))


def _batches(prompts: Prompts, rows: int) -> Iterator[tuple[Prompts, np.ndarray]]:
    """Batches of one size, the last one filled up with absent rows; and the rows' numbers."""
    count = len(prompts.tokens)
    for start in range(0, count, rows):
        index = np.arange(start, start + rows)
        row = np.minimum(index, count - 1)
        present: Any = index < count
        yield Prompts(prompts.tokens[row], prompts.mask[row], present=present), index
