"""Problems of a split, and one measurement of a policy on them."""

import contextlib
import dataclasses
import logging
from typing import Any

from jax_unmask.environment.bundle import (
    Bundle,
    check_split,
    describe,
    eval_splits,
    load_task,
)
from jax_unmask.environment.settings import RunSettings
from jax_unmask.evaluation.candidates import Candidate
from jax_unmask.evaluation.measure import Measurement, measure
from jax_unmask.rollout import Cache, Prompts, RolloutSettings
from jax_unmask.settings import ConfigError, naming
from jax_unmask.tasks.base import Example, Task

logger = logging.getLogger(__name__)
_MULTIPLE = 8  # Of longer prompts, so that lengths that differ little share programs.
_PROBLEM_SEED = 0
"""Seed of the problems of tasks that generate them: all policies and runs get the same ones."""


@dataclasses.dataclass(frozen=True)
class Problems:
    """The n problems of one split with their left-padded prompts [n, P] (NumPy).

    Prompts that fit one of `buckets`, lengths below P, are measured at that length.
    """

    split: str
    examples: list[Example]
    prompts: Prompts
    buckets: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Measured:
    """One row to measure: a candidate on problems, at a block length, with a seed and a cache."""

    candidate: Candidate
    problems: Problems
    block_length: int
    seed: int
    cache: Cache | None


def rollout_settings(
    config: RunSettings, bundle: Bundle, block_length: int, cache: Cache | None
) -> RolloutSettings:
    """The rollout's shape in an evaluation."""
    return dataclasses.replace(
        config.sampling_of(bundle.denoiser.config.family),
        block_length=block_length,
        stop_ids=bundle.tokenizer.stop_ids if config.eval.stop_at_end else (),
        cache=cache,
    )


def measure_one(
    config: RunSettings,
    bundle: Bundle,
    task: Task,
    item: Measured,
    rows: int,
    compiling: contextlib.AbstractContextManager[None] | None = None,
) -> Measurement:
    """Measures a row, with so many problems per rollout; `compiling` is as in `measure`."""
    return measure(
        bundle.denoiser,
        bundle.params,
        bundle.tokenizer,
        task,
        item.problems.examples,
        item.problems.prompts,
        item.candidate.policy,
        item.candidate.params,
        rollout_settings(config, bundle, item.block_length, item.cache),
        seed=item.seed,
        batch_size=config.eval.batch_size,
        rows=rows,
        buckets=item.problems.buckets,
        placement=bundle.placement,
        compiling=compiling,
    )


def check_problems(config: RunSettings) -> None:
    """Encodes the problems of an evaluation, before any weights are loaded.

    Raises:
        ConfigError: the model's tokenizer cannot read them, or they are not there.
    """
    splits = eval_splits(config)
    bundle = describe(config, tuple(splits))
    task = load_task(config, prompt_style=config.eval.prompt_style)
    for split in splits:
        count, source = check_split(config, task, split), task.source(split, seed=_PROBLEM_SEED)
        with naming("task.name", config.task.name, kind=ConfigError):
            for index in range(count):
                bundle.tokenizer.encode_prompt(task.prompt(source[index]))


def load_problems(config: RunSettings, bundle: Bundle, task: Task, split: Any) -> Problems:
    """The problems of a split that the config asks for, encoded.

    Prompts that are longer than `task.prompt_length` get the room that the longest needs, unless
    the config says otherwise. How many are cut, then or since the model has no room, is logged.

    Raises:
        ConfigError: the split has fewer problems.
    """
    count = check_split(config, task, split)
    source = task.source(split, seed=_PROBLEM_SEED)
    examples = [source[index] for index in range(count)]
    encoded = [bundle.tokenizer.encode_prompt(task.prompt(example)) for example in examples]
    budget, longest = config.task.prompt_length, max(map(len, encoded))
    buckets = tuple(config.task.prompt_buckets)
    if longest > budget and not config.eval.truncate_prompts:
        room = bundle.denoiser.config.max_length - config.sampling.gen_length
        needed = min(-(-longest // _MULTIPLE) * _MULTIPLE, room)
        # A few prompts may be far longer than all others, which should not pay for them.
        buckets = buckets or tuple(budget * 2**k for k in range((needed // budget).bit_length()))
        budget = max(budget, needed)
        logger.info(
            "%s, %s: prompts of up to %d tokens get up to %d, instead of task.prompt_length=%d",
            *(task.name, split, longest, budget, config.task.prompt_length),
        )
    if over := sum(len(prompt) > budget for prompt in encoded):
        logger.warning(
            "%s, %s: %d of %d prompts have more than %d tokens (up to %d) and lose their beginning",
            *(task.name, split, over, count, budget, longest),
        )
    prompts = bundle.tokenizer.pad_prompts(encoded, budget, truncate=True)
    return Problems(split, examples, prompts, buckets)
