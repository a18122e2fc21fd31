"""Measures every policy of a config and reports: results.jsonl, summary.md, frontier.png."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jax_unmask.evaluation import candidates as candidates_lib
from jax_unmask.evaluation.bundle import Bundle, load_task
from jax_unmask.evaluation.candidates import Candidate, gen_length
from jax_unmask.evaluation.measure import MOST_ROWS, measure
from jax_unmask.evaluation.store import ResultStore, Row, read_outcomes
from jax_unmask.report import plots, results, tables
from jax_unmask.rollout import Prompts, RolloutSettings
from jax_unmask.runtime.config import ConfigError
from jax_unmask.runtime.files import atomic_write
from jax_unmask.tasks.base import Example, Task

_PROBLEM_SEED = 0
"""Seed of the problems of tasks that generate them: all policies and runs get the same ones."""
_HASH_LENGTH = 16

logger = logging.getLogger(__name__)


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
    """One row to measure: a candidate on problems, at a block length, with a seed."""

    candidate: Candidate
    problems: Problems
    block_length: int
    seed: int


def run(
    config: ConfigDict,
    bundle: Bundle,
    workdir: str | pathlib.Path,
    *,
    trained: str | pathlib.Path | None = None,
) -> list[results.Result]:
    """Measures all policies of `config.eval`, prints the tables and writes the report.

    Writes into `workdir`: results.jsonl (one row per task, denoiser, policy, settings, block
    length, split and seed), outcomes/ (what happened on each problem), summary.md, frontier.png.
    Rows that are there already are not measured again; they are recognised by what was measured
    (weights, prompts, settings), not by names, so that a policy that was trained on is measured
    afresh.

    Args:
        config: a full, validated config.
        bundle: denoiser, tokenizer and task. The task is made again with `eval.prompt_style`.
        workdir: where to write.
        trained: directory of the policy that was trained with this config, if any.

    Returns:
        The results of this config, averaged over sampling seeds.

    Raises:
        ConfigError: the config asks for what cannot be measured; raised before anything compiles.
        ValueError: a prompt is over its budget, or the results file is damaged.
    """
    workdir = pathlib.Path(workdir)
    found = candidates_lib.candidates(config, trained=trained)
    if not found:
        raise ConfigError(
            "eval.policies", (), "there is nothing to measure", "Give at least one policy"
        )
    task = load_task(config, prompt_style=config.eval.prompt_style)
    splits = [load_problems(config, bundle, task, config.eval.split, config.eval.num_problems)]
    if config.eval.validation_problems and config.eval.split != "validation":
        count = config.eval.validation_problems
        splits.append(load_problems(config, bundle, task, "validation", count))
    store = ResultStore(workdir)
    denoiser_hash = _tree_hash(bundle.params, first_rows_only=True)
    plan = list(_plan(config, found, splits))
    rows = []
    began = time.monotonic()
    for index, item in enumerate(plan, start=1):
        row = _identify(config, bundle, task, item, denoiser_hash)
        if row["key"] in store.rows:
            rows.append(store.rows[row["key"]])
            continue
        rows.append(_measure(config, bundle, task, item, row, store))
        _log(rows[-1], index, len(plan), time.monotonic() - began)
    collected = results.collect(rows, lambda row: read_outcomes(workdir, row))
    _report(config, bundle, task, collected, workdir)
    return collected


def load_problems(
    config: ConfigDict, bundle: Bundle, task: Task, split: Any, count: int
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


def _plan(config: ConfigDict, found: list[Candidate], splits: list[Problems]) -> Iterator[Measured]:
    """Everything to measure; rows that share a compiled program follow each other."""
    temperature = config.rollout.temperature if "rollout" in config else 0.0
    blocks = sorted({block for candidate in found for block in candidate.block_lengths})
    for block in blocks:
        for candidate in found:
            if block not in candidate.block_lengths:
                continue
            draws = candidate.draws or temperature > 0
            for problems in splits:
                # The validation split serves to choose settings, which only heuristics need.
                on_validation = problems is not splits[0]
                if on_validation and candidate.label not in (results.HEURISTIC, results.RULE):
                    continue
                for seed in config.eval.seeds if draws else config.eval.seeds[:1]:
                    yield Measured(candidate, problems, block, seed)


def _identify(
    config: ConfigDict, bundle: Bundle, task: Task, item: Measured, denoiser_hash: str
) -> Row:
    """The part of a row that says what was measured, under a key made of all of it."""
    candidate, problems = item.candidate, item.problems
    row: Row = {
        "task": task.name,
        "denoiser": _denoiser_name(config, bundle),
        "policy": candidate.text,
        "settings": candidate.settings,
        "method": candidate.method,
        "label": candidate.label,
        "training_seed": candidate.training_seed,
        "block_length": item.block_length,
        "gen_length": gen_length(config),
        "temperature": config.rollout.temperature if "rollout" in config else 0.0,
        "split": problems.split,
        "prompt_style": config.eval.prompt_style,
        "seed": item.seed,
        "n": len(problems.examples),
        "policy_hash": _digest(repr(candidate.policy).encode(), _tree_hash(candidate.params)),
        "denoiser_hash": _digest(repr(bundle.denoiser).encode(), denoiser_hash),
        "prompts_hash": _tree_hash([problems.prompts.tokens, problems.prompts.mask]),
    }
    # Hashes stand for what paths only name: a workdir may be moved.
    identity = {name: value for name, value in row.items() if name not in ("policy", "denoiser")}
    return {"key": _digest(json.dumps(identity, sort_keys=True)), **row}


def _measure(
    config: ConfigDict, bundle: Bundle, task: Task, item: Measured, row: Row, store: ResultStore
) -> Row:
    measurement = measure(
        bundle.denoiser,
        bundle.params,
        bundle.tokenizer,
        task,
        item.problems.examples,
        item.problems.prompts,
        item.candidate.policy,
        item.candidate.params,
        RolloutSettings(
            gen_length=row["gen_length"],
            block_length=item.block_length,
            temperature=row["temperature"],
            vocab_chunk=config.rollout.vocab_chunk if "rollout" in config else None,
        ),
        seed=item.seed,
        batch_size=config.eval.batch_size,
        rows=_rows_per_rollout(config),
    )
    row = {
        **row,
        **measurement.summary(),
        "compile_seconds": measurement.compile_seconds,
        "batch_size": measurement.batch_size,
        "device": jax.devices()[0].device_kind,
    }
    return store.append(row, measurement.correct, measurement.nfe)


def _rows_per_rollout(config: ConfigDict) -> int:
    """One number for all splits, so that they share programs."""
    most = max(config.eval.num_problems, config.eval.validation_problems)
    return min(most, MOST_ROWS)


def _report(
    config: ConfigDict,
    bundle: Bundle,
    task: Task,
    collected: list[results.Result],
    workdir: pathlib.Path,
) -> None:
    split = config.eval.split
    title = f"{task.name}, denoiser {_denoiser_name(config, bundle)}"
    atomic_write(
        workdir / "summary.md", tables.summary(collected, split, title=title, markdown=True)
    )
    reported = [result for result in collected if result.split == split]
    plots.draw_frontier(workdir / "frontier.png", reported, title=title)
    sys.stdout.write(tables.summary(collected, split, title=title, markdown=False))
    sys.stdout.flush()
    logger.info("Wrote results.jsonl, summary.md and frontier.png to %s.", workdir)


def _denoiser_name(config: ConfigDict, bundle: Bundle) -> str:
    """For result rows; a denoiser that was trained from scratch has no path yet."""
    return bundle.name or config.model.path or results.TRAINED


def _log(row: Row, index: int, total: int, seconds: float) -> None:
    logger.info(
        "[%d/%d, %.0f s] %s: %s, block length %d: accuracy %.1f %%, NFE %.2f",
        index,
        total,
        seconds,
        row["split"],
        row["policy"],
        row["block_length"],
        100 * row["accuracy"],
        row["nfe_mean"],
    )


def _tree_hash(tree: Any, *, first_rows_only: bool = False) -> str:
    """Digest of arrays, their names and types.

    Args:
        tree: a pytree of arrays.
        first_rows_only: read only the first row of each array: enough to tell denoisers apart,
            because training changes every tensor, and quick at any size.
    """
    parts = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        part = leaf[(0,) * (leaf.ndim - 1)] if first_rows_only else leaf
        parts.append(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}".encode())
        parts.append(np.asarray(part).tobytes())
    return _digest(*parts)


def _digest(*parts: bytes | str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()[:_HASH_LENGTH]
