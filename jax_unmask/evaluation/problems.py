"""Problems of a split, and one measurement of a policy on them."""

from __future__ import annotations

import dataclasses
from typing import Any

from jax_unmask.environment.bundle import Bundle
from jax_unmask.environment.settings import RunSettings
from jax_unmask.evaluation.candidates import Candidate
from jax_unmask.rollout import Cache, Prompts, RolloutSettings
from jax_unmask.settings import ConfigError
from jax_unmask.tasks.base import Example, Task

_PROBLEM_SEED = 0
"""Seed of the problems of tasks that generate them: all policies and runs get the same ones."""


@dataclasses.dataclass(frozen=True)
class Problems:
    """The problems of one split, ready to be rolled out.

    Attributes:
        split: their split.
        examples: the problems.
        prompts: left-padded prompts [n, P], NumPy.
    """

    split: str
    examples: list[Example]
    prompts: Prompts


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
        config.sampling,
        block_length=block_length,
        stop_ids=bundle.tokenizer.stop_ids if config.eval.stop_at_end else (),
        cache=cache,
    )


def load_problems(
    config: RunSettings, bundle: Bundle, task: Task, split: Any, count: int
) -> Problems:
    """The first `count` problems of a split, encoded.

    Raises:
        ConfigError: the split has fewer problems.
        ValueError: a prompt is over its budget and may not be truncated.
    """
    source = task.source(split, seed=_PROBLEM_SEED)
    if len(source) < count:
        key = "eval.num_problems" if split == config.eval.split else "eval.validation_problems"
        raise ConfigError(
            key, count, f"the {split} split holds {len(source)} problems", "Give at most that many"
        )
    examples = [source[index] for index in range(count)]
    encoded = [bundle.tokenizer.encode_prompt(task.prompt(example)) for example in examples]
    prompts = bundle.tokenizer.pad_prompts(
        encoded, config.task.prompt_length, truncate=config.task.truncate_prompts
    )
    return Problems(split, examples, prompts)
