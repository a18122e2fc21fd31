"""The policies and problems that the report shows in full, and their generations."""

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from jax_unmask.denoisers import Denoiser, Params
from jax_unmask.environment.bundle import Bundle
from jax_unmask.environment.settings import RunSettings
from jax_unmask.evaluation.candidates import Candidate, candidates
from jax_unmask.evaluation.problems import Measured, Problems, rollout_settings
from jax_unmask.evaluation.store import Row, read_outcomes
from jax_unmask.policies.base import Needs, Policy, WithObservations
from jax_unmask.report import results, traces
from jax_unmask.rollout import (
    Cache,
    Prompts,
    RolloutSettings,
    Trajectory,
    Watcher,
    rollout,
    row_keys,
)
from jax_unmask.runtime import streams
from jax_unmask.runtime.placement import to_host
from jax_unmask.tasks.base import Task, drawing, rendered, start_checks

_LEARNED, _OTHERS = 2, 2
"""Policies of each kind that stand side by side where the config names none."""


@dataclasses.dataclass(frozen=True)
class Shown:
    """A policy of the viewer; `correct` is its score on each problem [n], where it was measured."""

    candidate: Candidate
    block_length: int
    seed: int
    correct: np.ndarray | None = None


def chosen(
    config: RunSettings, measured: Sequence[tuple[Measured, Row]], workdir: pathlib.Path
) -> list[Shown]:
    """The policies to show, at the longest block length that was measured.

    Those of `config.eval.viewer`. If it names none: of the learned policies the one that was
    trained here and the most accurate (without one, the most accurate and the fastest), and of the
    others the two methods that are most accurate without needing more forwards than these.
    """
    if not config.eval.examples:
        return []
    reported = [(m, row) for m, row in measured if m.problems.split == config.eval.split]
    longest = max(item.block_length for item, _ in reported)
    if config.eval.viewer:
        return _named(config, longest)
    here = [pair for pair in reported if pair[0].block_length == longest]
    here = [pair for pair in here if pair[0].seed == config.eval.seeds[0]]
    learned = _best_of_methods(
        [pair for pair in here if pair[0].candidate.label not in (results.HEURISTIC, results.RULE)]
    )
    trained = [pair for pair in learned if pair[0].candidate.label == results.TRAINED][:1]
    if trained:
        learned = [*trained, *(pair for pair in learned if pair not in trained)][:_LEARNED]
    elif len(learned) > _LEARNED:
        fastest = min(learned[1:], key=lambda pair: pair[1]["nfe_mean"])
        learned = [learned[0], fastest]
    limit = max((row["nfe_mean"] for _, row in learned), default=math.inf)
    others = [pair for pair in here if pair[0].candidate.label == results.HEURISTIC]
    fast = [pair for pair in others if pair[1]["nfe_mean"] <= limit] or others
    picked = [*learned, *_best_of_methods(fast)[:_OTHERS]] or here[:1]
    found = []
    for item, row in picked:
        outcomes = read_outcomes(workdir, row)
        correct = None if outcomes is None else outcomes[0]
        found.append(Shown(item.candidate, item.block_length, item.seed, correct))
    return found


def record_problems(
    config: RunSettings,
    bundle: Bundle,
    task: Task,
    problems: Problems,
    shown: Sequence[Shown],
    *,
    cache: Cache | None = None,
) -> list[dict[str, Any]]:
    """Rollouts of the policies on a few problems with every step, see `report.traces.problem`.

    Rows of a rollout do not depend on each other, so these are the very generations that were
    measured with this cache.
    """
    count = min(config.eval.examples, len(problems.examples))
    if not shown or not count:
        return []
    # Outcomes are known to the process that has the files.
    picked = bundle.placement.broadcast(
        pick_problems([s.correct for s in shown], len(problems.examples), count)
    )
    examples = [problems.examples[index] for index in picked]
    by_policy = [_record(config, bundle, task, problems, picked, policy, cache) for policy in shown]
    return [
        traces.problem(
            f"problem {index + 1}",
            rendered(task, example),
            [of_policy[place] for of_policy in by_policy],
            target=task.target(example),
        )
        for place, (index, example) in enumerate(zip(picked, examples, strict=True))
    ]


def pick_problems(correct: Sequence[np.ndarray | None], n: int, count: int) -> list[int]:
    """Indices of `count` varied problems of n, by the score [n] that each policy has on them.

    In turn one on which policies disagree, one that all get wrong, one that all get right, then
    ordered by these kinds; without outcomes the first problems.
    """
    known = [scores >= 1 for scores in correct if scores is not None and len(scores) == n]
    if not known:
        return list(range(count))
    right = np.sum(known, axis=0)
    kind = np.where(right == 0, 1, np.where(right == len(known), 2, 0))
    turn = np.zeros(n, int)  # How many problems of its kind come before each.
    for each in range(3):
        turn[kind == each] = np.arange((kind == each).sum())
    picked = np.lexsort((kind, turn))[:count]
    return picked[np.lexsort((picked, kind[picked]))].tolist()


def record(
    denoiser: Denoiser,
    denoiser_params: Params,
    policy: Policy,
    policy_params: Any,
    prompts: Prompts,
    keys: Array,
    settings: RolloutSettings,
    watch: Watcher | None = None,
) -> tuple[Trajectory, Float[Array, "T B L"] | None]:
    """The trajectory of `rollout.rollout` with records, and the policy's fill probabilities if any.

    Both are NumPy arrays. At temperature 0 the records have scores of the whole canvas, otherwise
    of the positions that the policy reads.
    """
    settings = dataclasses.replace(settings, record=True)
    # Which tokens are drawn depends on which positions are scored: those that the policy reads.
    watched = policy if settings.temperature > 0 else WithObservations(policy, Needs(canvas=True))
    trajectory = rollout(
        denoiser, denoiser_params, watched, policy_params, prompts, keys, settings, watch
    )
    probability, probabilities = None, getattr(policy, "fill_probabilities", None)
    if probabilities is not None:
        assert trajectory.records is not None  # They were asked for.
        # Step by step, as the rollout did: all at once would need the memory of all steps.
        probability = jax.jit(
            lambda params, obs: jax.lax.map(lambda o: probabilities(params, o), obs)
        )(policy_params, trajectory.records.obs)
    return to_host((trajectory, probability))


def _named(config: RunSettings, longest: int) -> list[Shown]:
    """The policies of `config.eval.viewer`, at the block length that they name or the longest."""
    chosen = dataclasses.replace(
        config.eval, policies=config.eval.viewer, shipped=(), block_lengths=(longest,)
    )
    only = dataclasses.replace(config, eval=chosen)
    seed = config.eval.seeds[0]
    return [Shown(each, max(each.block_lengths), seed) for each in candidates(only)]


def _best_of_methods(pairs: Sequence[tuple[Measured, Row]]) -> list[tuple[Measured, Row]]:
    """The most accurate setting of each method (the fastest of equals), best methods first."""
    ordered = sorted(pairs, key=lambda pair: (-pair[1]["accuracy"], pair[1]["nfe_mean"]))
    best: dict[str, tuple[Measured, Row]] = {}
    for item, row in ordered:
        best.setdefault(item.candidate.method, (item, row))
    return list(best.values())


def _record(
    config: RunSettings,
    bundle: Bundle,
    task: Task,
    problems: Problems,
    picked: Sequence[int],
    shown: Shown,
    cache: Cache | None,
) -> list[dict[str, Any]]:
    """The traces of one policy on the picked problems."""
    candidate = shown.candidate
    settings = rollout_settings(config, bundle, shown.block_length, cache)
    key = streams.stream(streams.root(shown.seed), "sampling")
    tokenizer, places, found = bundle.tokenizer, bundle.placement, []
    # Records of hidden states are large: those are rolled out one by one.
    size = 1 if candidate.policy.needs.hidden else len(picked)
    params = places.everywhere(candidate.params)
    for start in range(0, len(picked), size):
        rows = np.asarray(picked[start : start + size])
        prompts = places.everywhere(
            Prompts(tokens=problems.prompts.tokens[rows], mask=problems.prompts.mask[rows])
        )
        keys = row_keys(key, places.everywhere(rows))
        trajectory, probability = record(
            bundle.denoiser, bundle.params, candidate.policy, params, prompts, keys, settings
        )
        responses = tokenizer.decode_batch(np.asarray(trajectory.tokens))
        scores = start_checks(task, [problems.examples[row] for row in rows], responses)()
        found += [
            traces.trace(
                trajectory,
                row,
                tokenizer.pieces,
                method=candidate.method,
                settings=results.settings_text(sorted(candidate.settings.items())),
                label=candidate.label,
                text=responses[row],
                block_length=shown.block_length,
                stop_ids=tokenizer.stop_ids,
                score=float(scores[row]),
                drawing=drawing(task, problems.examples[rows[row]], responses[row]),
                probability=probability,
            )
            for row in range(len(rows))
        ]
    return found
