"""Measures every policy of a config; rows go to results.jsonl, see `evaluation.reporting`."""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from jax_unmask.environment.bundle import Bundle, build_cache, eval_splits, load_task
from jax_unmask.environment.settings import RunSettings
from jax_unmask.evaluation import candidates as candidates_lib
from jax_unmask.evaluation import reporting, viewing
from jax_unmask.evaluation.candidates import Candidate
from jax_unmask.evaluation.identity import digest, essence, tree_hash
from jax_unmask.evaluation.measure import MOST_ROWS
from jax_unmask.evaluation.problems import (
    Measured,
    Problems,
    load_problems,
    measure_one,
    rollout_settings,
)
from jax_unmask.evaluation.store import ResultStore, Row, read_outcomes
from jax_unmask.report import results
from jax_unmask.rollout import Cache
from jax_unmask.rollout.caching import NONE
from jax_unmask.runtime import progress
from jax_unmask.runtime.compilation import announced
from jax_unmask.settings import ConfigError
from jax_unmask.tasks.base import Task

_HASHED = ("model.path", "task.path", "task.tfds_data_dir")
"""Keys of paths: rows identify their content by a hash."""

LOCK = "evaluation.lock"
"""Lock of a directory that measurements are written to."""

logger = logging.getLogger(__name__)


def run(
    config: RunSettings,
    bundle: Bundle,
    workdir: str | pathlib.Path,
    *,
    trained: str | pathlib.Path | None = None,
) -> list[results.Result]:
    """Measures all policies of `config.eval`, prints the tables and writes the report.

    Writes into `workdir`: results.jsonl (one row per task, denoiser, policy, settings, block
    length, split and seed), outcomes/ (what happened on each problem), summary.md, frontier.png and
    report.html. Rows that are there already are not measured again; they are recognised by what was
    measured (weights, prompts, settings), not by names, so that a policy that was trained on is
    measured afresh. With several processes each checks its own rows, and the first one writes.

    Args:
        config: a full, validated config.
        bundle: denoiser, tokenizer and task. The task is made again with `eval.prompt_style`.
        workdir: where to write.
        trained: directory of the policy that was trained with this config, if any.

    Returns:
        The results of this config, averaged over sampling seeds.

    Raises:
        ValueError: a measurement is impossible (before anything compiles), or a file is damaged.
    """
    curve_files = reporting.curve_files(config, pathlib.Path(workdir))
    swept = measure_all(config, bundle, workdir, trained=trained)
    if not jax.process_index():
        reporting.write([swept], pathlib.Path(workdir), curve_files, config)
    return swept.results


def measure_all(
    config: RunSettings,
    bundle: Bundle,
    workdir: str | pathlib.Path,
    *,
    trained: str | pathlib.Path | None = None,
    varied: Mapping[str, Any] | None = None,
) -> reporting.Swept:
    """Measures all policies of `config.eval`, without writing the report.

    `varied` has the values of the sweep's axes by key; they go into the rows.
    """
    workdir = pathlib.Path(workdir)
    caches = _caches(config, bundle)
    found = candidates_lib.candidates(config, trained=trained)
    if not found:
        raise ConfigError(
            "eval.policies", (), "there is nothing to measure", "Give at least one policy"
        )
    task = load_task(config, prompt_style=config.eval.prompt_style)
    splits = [load_problems(config, bundle, task, split) for split in eval_splits(config)]
    # All processes measure the same rows and skip the same ones; process 0 has the files.
    store = None if jax.process_index() else ResultStore(workdir)
    known = bundle.placement.broadcast({} if store is None else dict(store.rows))
    denoiser_hash = tree_hash(bundle.params, first_rows_only=True)
    items = [
        dataclasses.replace(item, cache=cache)
        for cache in caches
        for item in plan(config, found, splits)
    ]
    # The same for all splits, so that they share programs.
    per_rollout = min(max(len(each.examples) for each in splits), MOST_ROWS)
    rows: list[Row] = []
    compiled: set[Any] = set()
    jobs = progress.Jobs(len(items), "evaluation")
    for index, item in enumerate(items, start=1):
        row = _identify(config, bundle, task, item, denoiser_hash, varied or {})
        if row["key"] in known:
            rows.append(known[row["key"]])
            continue
        program = _program(item)
        what = f"rollouts of {item.candidate.method} with {_denoiser_name(config, bundle)}"
        is_new = program not in compiled
        compiling = announced(what) if is_new else None
        compiled.add(program)
        measurement = measure_one(config, bundle, task, item, per_rollout, compiling)
        row |= {
            **measurement.summary(),
            "compile_seconds": measurement.compile_seconds,
            "batch_size": measurement.batch_size,
            "device": jax.devices()[0].device_kind,
        }
        if store is not None:
            row = store.append(row, measurement.correct, measurement.nfe)
        rows.append(row)
        known[row["key"]] = rows[-1]
        line = jobs.done(
            index,
            _found(rows[-1]),
            compiled=measurement.compile_seconds if is_new else None,
            to_compile=len({_program(each) for each in items[index:]} - compiled),
        )
        if not jax.process_index():
            logger.info("%s", line)
    # The viewer shows one environment, the first.
    pairs = [(item, row) for item, row in zip(items, rows, strict=True) if item.cache == caches[0]]
    chosen = viewing.chosen(config, pairs, workdir)
    if not jax.process_index():
        if not compiled:
            logger.info("%d of %d are measured; writing the report ...", len(rows), len(items))
        elif chosen:
            logger.info("Examples and trajectories for the report ...")
    return reporting.Swept(
        title=_title(config, bundle, task, varied or {}),
        split=config.eval.split,
        results=results.collect(rows, lambda row: read_outcomes(workdir, row)),
        problems=viewing.record_problems(config, bundle, task, splits[0], chosen, cache=caches[0]),
        device=str(rows[0]["device"]),
        block_length=config.sampling.block_length,
    )


def _caches(config: RunSettings, bundle: Bundle) -> list[Cache | None]:
    """The caches to measure with; a `ConfigError` for one that does not fit the denoiser."""
    denoiser = bundle.denoiser.config
    if config.eval.caches:
        return [build_cache(text, "eval.caches", denoiser) for text in config.eval.caches]
    if config.sampling.cache is not None:
        build_cache(str(config.sampling.cache), "rollout.cache", denoiser)  # Does it fit?
    return [config.sampling.cache]


def plan(config: RunSettings, found: list[Candidate], splits: list[Problems]) -> Iterator[Measured]:
    """All measurements, ordered such that those that share a compiled program are adjacent."""
    temperature = config.sampling.temperature
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
                    yield Measured(candidate, problems, block, seed, cache=None)


def _program(item: Measured) -> tuple[str, int, Cache | None]:
    """The key of a measurement's compiled program, which is the same whatever the settings."""
    return item.candidate.method, item.block_length, item.cache


def _identify(
    config: RunSettings,
    bundle: Bundle,
    task: Task,
    item: Measured,
    denoiser_hash: str,
    varied: Mapping[str, Any],
) -> Row:
    """The identifying fields of a row, with a key that is a digest of all of them."""
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
        "gen_length": config.sampling.gen_length,
        "temperature": config.sampling.temperature,
        "split": problems.split,
        "prompt_style": config.eval.prompt_style,
        "seed": item.seed,
        "n": len(problems.examples),
        "policy_hash": digest(essence(candidate.policy), tree_hash(candidate.params)),
        "denoiser_hash": digest(essence(bundle.denoiser), denoiser_hash),
        "prompts_hash": tree_hash([problems.prompts.tokens, problems.prompts.mask]),
    }
    if varied:
        row["axes"] = {key: value for key, value in varied.items() if key not in _HASHED}
    # Hashes instead of paths, since a workdir may be moved.
    identity = {name: value for name, value in row.items() if name not in ("policy", "denoiser")}
    options = {
        "cache": NONE if item.cache is None else str(item.cache),
        "stop_at_end": config.eval.stop_at_end,
    }
    filters = rollout_settings(config, bundle, item.block_length, item.cache).sampling
    options |= {"top_k": filters.top_k, "top_p": filters.top_p} if filters.filters else {}
    # Only where they differ from what there was before there were options: rows keep their keys.
    identity |= {name: value for name, value in options.items() if value not in (NONE, False)}
    return {"key": digest(json.dumps(identity, sort_keys=True)), **row, **options}


def _title(config: RunSettings, bundle: Bundle, task: Task, varied: Mapping[str, Any]) -> str:
    said = ("task.name", *_HASHED)
    rest = [f"{key.partition('.')[2]} {v}" for key, v in varied.items() if key not in said]
    return ", ".join([task.name, f"denoiser {_denoiser_name(config, bundle)}", *rest])


def _denoiser_name(config: RunSettings, bundle: Bundle) -> str:
    """The denoiser's name in result rows; one that was trained from scratch has no path yet."""
    return bundle.name or config.model.path or results.TRAINED


def _found(row: Row) -> str:
    cache = "" if row["cache"] == NONE else f", cache {row['cache']}"
    return (
        f"{row['split']}: {row['policy']}, block length {row['block_length']}{cache}: "
        f"accuracy {100 * row['accuracy']:.1f} %, NFE {row['nfe_mean']:.2f}"
    )
