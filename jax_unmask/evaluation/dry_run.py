"""The measurements of an evaluation and their time, before any weights are loaded."""

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from jax_unmask.environment.bundle import check_split, eval_splits, load_task
from jax_unmask.environment.settings import RunSettings
from jax_unmask.evaluation.candidates import Candidate, candidates
from jax_unmask.evaluation.problems import Problems
from jax_unmask.evaluation.sweep import plan
from jax_unmask.policies.base import Observation
from jax_unmask.policies.heuristics import Quota
from jax_unmask.prompts import Prompts
from jax_unmask.report.tables import text_table
from jax_unmask.settings import ConfigError

# Problems of test sets as published; of others the data are read.
_PUBLISHED = {"gsm8k": 1319, "math": 5000, "math500": 500, "humaneval": 164, "mbpp": 500}
_HEADER = ["what", "canvas", "blocks", "method", "settings", "rows", "problems", "NFE", "hours"]


@dataclasses.dataclass(frozen=True)
class Planned:
    """Measurements of one method: `settings` of it in `rows` of results.jsonl, over all caches.

    `what` has the values of the sweep's axes, or the task. `problems` and `forwards` (of rows) are
    totals; the latter `is_known` if they follow from the settings.
    """

    what: str
    gen_length: int
    block_length: int
    method: str
    settings: int
    rows: int
    problems: int
    forwards: float
    is_known: bool


def planned(
    varied: Sequence[tuple[RunSettings, dict[str, Any]]], nfe: int | None = None
) -> list[Planned]:
    """The measurements of a sweep, in its order; reads policies and counts problems.

    `varied` has every config with the values of its axes. A row is assumed to need `nfe` forwards
    where that depends on the denoiser; half the canvas by default.
    """
    found = []
    for config, values in varied:
        length = config.sampling.gen_length
        unread: Any = None
        splits = [
            Problems(split, [{}] * _count(config, split, count), Prompts(unread, unread))
            for split, count in eval_splits(config).items()
        ]
        what = ", ".join(str(value) for value in values.values()) or config.task.name
        groups: dict[tuple[int, str], list[Any]] = defaultdict(list)
        for item in plan(config, candidates(config), splits):
            groups[item.block_length, item.candidate.method].append(item)
        for (block, method), items in groups.items():
            counts = [len(item.problems.examples) for item in items]
            needed = [forwards(item.candidate, length, block) for item in items]
            total = sum(
                count * (nfe or length / 2 if each is None else each)
                for count, each in zip(counts, needed, strict=True)
            )
            caches = max(len(config.eval.caches), 1)
            found.append(
                Planned(
                    what=what,
                    gen_length=length,
                    block_length=block,
                    method=method,
                    settings=len({item.candidate.text for item in items}),
                    rows=caches * len(items),
                    problems=caches * sum(counts),
                    forwards=caches * total,
                    is_known=None not in needed,
                )
            )
    return found


def forwards(candidate: Candidate, gen_length: int, block_length: int) -> int | None:
    """Forwards that a row needs under a policy; None if that depends on the denoiser."""
    if not isinstance(candidate.policy, Quota):
        return None
    total, nothing = 0, jnp.zeros((block_length, gen_length))
    for start in range(0, gen_length, block_length):
        step = jnp.arange(block_length)
        obs = Observation(
            candidate=nothing,
            confidence=nothing,
            top_probs=nothing[..., None],
            masked=nothing > 0,
            legal=nothing > 0,
            step=step,
            step_in_block=step,
            block_start=jnp.full(block_length, start),
            block_length=block_length,
        )
        fills = candidate.policy.quota(candidate.params, obs).tolist()
        done = 0
        while done < block_length:
            done += fills.pop(0)
            total += 1
    return total


def table(rows: Sequence[Planned], speed: float | None) -> str:
    """The measurements as text, with hours at a speed in row forwards per second."""

    def hours(count: float) -> str:
        return f"{count / speed / 3600:.2f}" if speed else "-"

    lines = [
        [
            *(row.what, str(row.gen_length), str(row.block_length), row.method),
            *(str(row.settings), str(row.rows), str(row.problems)),
            f"{row.forwards / row.problems:.1f}{'' if row.is_known else ' *'}",
            hours(row.forwards),
        ]
        for row in rows
    ]
    total = sum(row.forwards for row in rows)
    text = f"{text_table([_HEADER, *lines])}\n\n{sum(row.rows for row in rows)} rows, "
    text += f"{sum(row.problems for row in rows):,} generations, {total:,.0f} row forwards"
    text += f": {hours(total)} hours at {speed:g} row forwards per second\n" if speed else "\n"
    if not all(row.is_known for row in rows):
        text += "* assumed; what a row needs depends on the denoiser (--nfe)\n"
    return text


def _count(config: RunSettings, split: Any, count: int) -> int:
    """Problems of a split, all of them for 0; those of published test sets are known.

    The task is made in any case, so that mistakes in its settings show.
    """
    published = _PUBLISHED.get(config.task.name) if split == "test" else None
    try:
        task = load_task(config)
    except ConfigError as error:
        if error.key != "task.path" or config.task.path is not None or not (count or published):
            raise
        return count or published or 0  # The data need not be there.
    if config.task.path is None and (count or published):
        return count or published or 0
    return check_split(config, task, split)
