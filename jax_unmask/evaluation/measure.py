"""Runs one policy over a set of problems and counts: right answers, forwards, seconds."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from jax_unmask.denoisers import Denoiser, Params, Tokenizer
from jax_unmask.policies.base import Policy, strong
from jax_unmask.report.frontier import standard_error
from jax_unmask.rollout import Prompts, RolloutSettings, by_length, never_filled, rollout, row_keys
from jax_unmask.rollout.trajectory import check_finite
from jax_unmask.runtime import streams
from jax_unmask.runtime.placement import Placement
from jax_unmask.tasks.base import Example, Task, start_checks

MOST_ROWS = 4096
"""Problems per rollout at most, by default: bounds memory, which grows with them (some kB each)."""


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Results of one policy on n problems.

    Attributes:
        correct: score of each problem in [0, 1]; 1 is right.
        nfe: denoiser forwards that each problem's sequence needed.
        responses: text of each response, up to the first EOS.
        seconds: wall time of all rollouts, without compilation, decoding and checking (which
            overlap).
        compile_seconds: wall time of tracing and compiling; near 0 where the program was known.
        batch_size, forwards: problems per forward; forwards that were executed.
        cost: cost of each problem's forwards, in forwards over its whole sequence.
        executed_cost: cost of all executed forwards, in the same unit.
        tokens: response tokens before the first EOS, over all problems.
        still_masked: fraction of canvas positions that were never filled.
    """

    correct: Float[np.ndarray, " n"]
    nfe: Int[np.ndarray, " n"]
    responses: list[str]
    seconds: float
    compile_seconds: float
    batch_size: int
    forwards: int
    cost: Float[np.ndarray, " n"]
    executed_cost: float
    tokens: int
    still_masked: float

    def summary(self) -> dict[str, float | int]:
        """Means with standard errors over problems (s / sqrt(n)), and rates, by the names of rows.

        `tokens_mean` and `tokens_per_second` count tokens before the first EOS;
        `useful_forward_fraction` is the fraction of the executed row forwards that a row still
        needed, by cost.
        """
        n = len(self.correct)
        return {
            "n": n,
            "accuracy": float(self.correct.mean()),
            "accuracy_se": standard_error(self.correct),
            "nfe_mean": float(self.nfe.mean()),
            "nfe_se": standard_error(self.nfe),
            "cost_mean": float(self.cost.mean()),
            "cost_se": standard_error(self.cost),
            "seconds_per_sequence": self.seconds / n,
            "tokens_mean": self.tokens / n,
            "tokens_per_second": self.tokens / self.seconds,
            "useful_forward_fraction": float(self.cost.sum()) / self.executed_cost,
            "still_masked": self.still_masked,
        }


def measure(
    denoiser: Denoiser,
    denoiser_params: Params,
    tokenizer: Tokenizer,
    task: Task,
    examples: Sequence[Example],
    prompts: Prompts,
    policy: Policy,
    policy_params: Any,
    settings: RolloutSettings,
    *,
    seed: int,
    batch_size: int,
    rows: int | None = None,
    buckets: Sequence[int] = (),
    placement: Placement | None = None,
    compiling: contextlib.AbstractContextManager[None] | None = None,
) -> Measurement:
    """Measures a policy on n problems.

    A rollout takes many problems and serves `batch_size` of them at one time; one that is done
    makes room for the next. All rollouts have one shape (but for `buckets`), so one program serves
    all of them, and all settings of a policy. Problem k draws from stream k of the seed, whatever
    the batch size.

    Args:
        denoiser, denoiser_params, tokenizer: the dLLM.
        task, examples: checks the responses; the problems.
        prompts: their prompts as NumPy arrays [n, P], left-padded.
        policy, policy_params: chooses the positions to fill; its parameters and settings.
        settings: shape of the rollout; its slots are replaced by `batch_size`, and nothing is
            recorded.
        seed: seed of everything that is drawn, at least 0.
        batch_size: problems per forward, at most n are used.
        rows: problems per rollout, n by default. Measurements on fewer problems share the program;
            the missing rows cost nothing.
        buckets: lengths below P to which the prompts that fit are padded, each with its own
            program.
        placement: where the denoiser is; the first device by default. Rows and batch sizes are
            rounded up to multiples of its shards.
        compiling: entered while the programs are compiled.

    Raises:
        ValueError: there are no problems, or their number is not that of the prompts.
    """
    n = len(examples)
    if n == 0 or prompts.tokens.shape[0] != n:
        raise ValueError(
            f"{n} examples and {prompts.tokens.shape[0]} prompts; give one prompt per example, and "
            "at least one"
        )
    size = min(n, MOST_ROWS) if rows is None else rows
    for name, value in (("batch_size", batch_size), ("rows", size)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    places = Placement() if placement is None else placement
    # Every process has all problems, and checks its own rows of each rollout.
    size, batch_size = (
        -(-number // places.shards) * places.shards for number in (size, batch_size)
    )
    batch_size = min(batch_size, size)
    settings = dataclasses.replace(
        settings, record=False, slots=batch_size, slot_groups=places.shards
    )
    params = strong(policy_params)
    key = streams.stream(streams.root(seed), "sampling")
    own_size = size // places.feeds
    own_rows = slice(places.feed * own_size, (places.feed + 1) * own_size)

    jobs = [
        (width, members[start : start + size])
        for width, members in by_length(np.asarray(prompts.mask), buckets)
        for start in range(0, len(members), size)
    ]

    def arguments(width: int, members: Int[np.ndarray, " m"]) -> tuple[Any, ...]:
        index = np.arange(size)
        row = members[np.minimum(index, len(members) - 1)]
        present: Any = index < len(members)
        batch = places.global_rows(
            Prompts(
                tokens=prompts.tokens[row, -width:],
                mask=prompts.mask[row, -width:],
                present=present,
            )
        )
        keys = row_keys(key, places.global_rows(row))
        return denoiser, denoiser_params, policy, params, batch, keys, settings

    def dispatch(width: int, members: Int[np.ndarray, " m"]) -> tuple[jax.Array, ...]:
        with places.active():
            done = rollout(*arguments(width, members))
            of_rows = done.tokens, done.nfe, done.cost, done.confidence, done.step_map
            return *of_rows, done.forwards, done.executed_cost

    def check(
        members: Int[np.ndarray, " m"], tokens: np.ndarray
    ) -> tuple[list[str], Callable[[], list[float]]]:
        responses = tokenizer.decode_batch(tokens)
        return responses, start_checks(task, [examples[k] for k in members], responses)

    began = time.perf_counter()
    # The call below finds this program in JAX's cache; so do later calls with other settings.
    with places.active():
        widths = {width: None for width, _ in jobs}
        traced = [rollout.lower(*arguments(width, jobs[0][1])) for width in widths]
        with compiling or contextlib.nullcontext():
            for each in traced:
                each.compile()
    del traced
    compile_seconds = time.perf_counter() - began

    own, checks = [], []
    forwards, executed_cost = 0, 0.0
    with ThreadPoolExecutor(max_workers=1) as checker:
        began = time.perf_counter()
        pending = dispatch(*jobs[0])
        for index, (_, members) in enumerate(jobs):
            current = pending
            if index + 1 < len(jobs):
                pending = dispatch(*jobs[index + 1])
            *of_rows, executed, of_all = current
            *kept, confidence, step_map = places.fetch(of_rows)
            check_finite(confidence, step_map)
            own.append(kept)
            forwards += int(executed)
            executed_cost += float(of_all)
            mine = members[own_rows]
            checks.append(checker.submit(check, mine, own[-1][0][: len(mine)]))
        seconds = time.perf_counter() - began
        started = [future.result() for future in checks]
    canvases, nfes, costs, scores, texts = [], [], [], [], []
    for (_, members), of_rows, (responses, found) in zip(jobs, own, started, strict=True):
        score = np.zeros(own_size, np.float32)
        score[: len(responses)] = found()
        every = places.gather((*of_rows, score))
        canvas, nfe, cost, score = (rows[: len(members)] for rows in every)
        canvases.append(canvas)
        nfes.append(nfe)
        costs.append(cost.astype(np.float64))
        scores.append(score)
        texts += responses if own_size == size else tokenizer.decode_batch(canvas)
    canvas = np.concatenate(canvases)
    # Back in the order of the problems.
    order = np.argsort(np.concatenate([members for _, members in jobs]))
    return Measurement(
        correct=np.concatenate(scores)[order],
        nfe=np.concatenate(nfes)[order],
        responses=[texts[k] for k in order],
        seconds=seconds,
        compile_seconds=compile_seconds,
        batch_size=batch_size,
        forwards=forwards,
        cost=np.concatenate(costs)[order],
        executed_cost=executed_cost,
        tokens=_count_tokens(canvas, tokenizer.eos_id, tokenizer.mask_id),
        still_masked=float(never_filled(canvas, tokenizer.mask_id, settings.stop_ids).mean()),
    )


def _count_tokens(canvas: Int[np.ndarray, "n L"], eos_id: int, mask_id: int) -> int:
    before_eos = np.cumsum(canvas == eos_id, axis=1) == 0
    return int((before_eos & (canvas != mask_id)).sum())
