"""Calibration of a policy: its forwards by the alpha that it is told. Answers are not needed."""

import contextlib
import dataclasses
import logging
import math
from collections.abc import Iterator
from typing import Any, Literal

import jax
import numpy as np

from jax_unmask.environment.bundle import Bundle, load_task
from jax_unmask.environment.settings import RunSettings
from jax_unmask.evaluation.problems import load_problems, rollout_settings
from jax_unmask.policies import LearnedPolicy
from jax_unmask.policies.base import Params
from jax_unmask.policies.calibration import Calibration, between
from jax_unmask.rollout import Prompts, rollout, row_keys
from jax_unmask.rollout.trajectory import check_finite
from jax_unmask.runtime import streams
from jax_unmask.runtime.compilation import CompileTimes, announced
from jax_unmask.runtime.progress import Jobs
from jax_unmask.settings import Settings, setting

logger = logging.getLogger(__name__)

# Scales beyond the alphas, see `calibration.between`: at the first a position is filled per step,
# at the next ones those that the policy is sure of, at the last all at one time.
_SCALES = (0.01, 0.50000012, 0.500005, 0.5005, 0.55, 8.0, 512.0, 5e4, 1e9)
# Where forwards differ by more than this factor from one place to the next, places in between are
# measured too, at most so many.
_GAP, _REFINED = 1.15, 12


@dataclasses.dataclass(frozen=True)
class CalibrationSettings(Settings):
    """Settings of the measurements of a calibration."""

    block_length: int = setting(0, "Block length in tokens; 0 for the config's.", ge=0)
    points: int = setting(13, "Alphas that are measured.", ge=2, le=100)
    split: Literal["train", "validation", "test"] = setting(
        "train", "Split of the task whose prompts are used; not the one that is measured later."
    )
    prompts: int = setting(256, "Number of prompts.", ge=1)


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

    Beyond them, slower and faster, its probabilities are scaled. Further places are put where
    forwards differ most. All settings share one compiled program. Responses are not checked.

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
        slower = [(low, scale) for scale in _SCALES if scale < own]
        places = slower + places + [(high, scale) for scale in _SCALES if scale > own]

    def count(alpha: float, scale: float) -> float:
        """Mean forwards at a place."""
        told, forwards = {**params, **policy.params(alpha=alpha, scale=scale)}, []
        for batch, identities in _batches(prompts, rows):
            with bundle.placement.active():
                done = rollout(
                    bundle.denoiser,
                    bundle.params,
                    policy,
                    told,
                    bundle.placement.global_rows(batch),
                    row_keys(key, bundle.placement.global_rows(identities)),
                    settings,
                )
            used, *scores = bundle.placement.fetch((done.nfe, done.confidence, done.step_map))
            check_finite(*scores)
            forwards.append(np.asarray(used)[np.asarray(batch.present)])
        return float(np.concatenate(forwards).mean())

    nfe: list[float] = []
    what = f"rollouts of learned with {bundle.name}"
    compiling: contextlib.AbstractContextManager[None] = announced(what)
    times = CompileTimes()
    first, total = places, len(places) + _REFINED
    places, jobs = [], Jobs(total, "calibration")
    while len(places) < total:
        if len(places) < len(first):
            at, place = len(places), first[len(places)]
        elif (found := _largest_gap(places, nfe)) is not None:
            at, place = found
        else:
            break
        with compiling:
            places.insert(at, place)
            nfe.insert(at, count(*place))
        compiling, seconds = contextlib.nullcontext(), times.seconds if len(places) == 1 else None
        text = f"alpha {place[0]:.4g}, scale {place[1]:.8g}: {nfe[at]:.3f} forwards"
        line = jobs.done(len(places), f"{text} of {settings.gen_length}", compiled=seconds)
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


def _largest_gap(
    places: list[tuple[float, float]], nfe: list[float]
) -> tuple[int, tuple[float, float]] | None:
    """The next measurement: index, alpha and scale; None once forwards are close everywhere."""
    ratios = np.minimum.accumulate(nfe[:-1]) / np.minimum.accumulate(nfe)[1:]
    for index in np.argsort(-ratios):
        if ratios[index] < _GAP:
            break
        (alpha, slower), (other, faster) = places[index], places[index + 1]
        scale = between(slower, faster, 0.5)
        # In neighbouring numbers of 32 bits there is nothing in between.
        if slower == faster or slower < np.float32(scale) < faster:
            return index + 1, (math.sqrt(alpha * other), scale)
    return None


def _batches(prompts: Prompts, rows: int) -> Iterator[tuple[Prompts, np.ndarray]]:
    """Batches of one size, the last one filled up with absent rows; and the rows' numbers."""
    count = len(prompts.tokens)
    for start in range(0, count, rows):
        index = np.arange(start, start + rows)
        row = np.minimum(index, count - 1)
        present: Any = index < count
        yield Prompts(prompts.tokens[row], prompts.mask[row], present=present), index
