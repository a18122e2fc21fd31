"""Runs one policy over a set of problems and counts: right answers, forwards, seconds."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jax_unmask.denoisers import Denoiser, Params, Tokenizer
from jax_unmask.policies.base import Policy
from jax_unmask.report.frontier import standard_error
from jax_unmask.rollout import Prompts, RolloutSettings, rollout, row_keys
from jax_unmask.tasks.base import Example, Task, start_checks

MOST_ROWS = 4096
"""Problems per rollout at most, by default: bounds memory, which grows with them (some kB each)."""


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What one policy did on n problems.

    Attributes:
        correct: score of each problem in [0, 1]; 1 is right.
        nfe: denoiser forwards that each problem's sequence needed.
        responses: text of each response, up to the first EOS.
        seconds: wall time of all rollouts, without compilation. Decoding and checking run beside
            the next rollout and are not waited for.
        compile_seconds: wall time of tracing and compiling; near 0 where the program was compiled
            before.
        batch_size: problems per forward.
        forwards: forwards that were executed, each for that many problems.
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
    tokens: int
    still_masked: float

    def summary(self) -> dict[str, float | int]:
        """Means with standard errors over problems, and rates.

        Returns:
            n; accuracy and accuracy_se (binomial for right/wrong scores: s / sqrt(n) with the
            sample deviation s); nfe_mean and nfe_se; seconds_per_sequence; tokens_per_second (of
            tokens before the first EOS); useful_forward_fraction, the part of the executed row
            forwards that a row still needed; still_masked.
        """
        n = len(self.correct)
        return {
            "n": n,
            "accuracy": float(self.correct.mean()),
            "accuracy_se": standard_error(self.correct),
            "nfe_mean": float(self.nfe.mean()),
            "nfe_se": standard_error(self.nfe),
            "seconds_per_sequence": self.seconds / n,
            "tokens_per_second": self.tokens / self.seconds,
            "useful_forward_fraction": float(self.nfe.sum()) / (self.forwards * self.batch_size),
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
) -> Measurement:
    """Measures a policy on problems.

    A rollout takes many problems and serves `batch_size` of them at one time; one that is done
    makes room for the next. All rollouts have one shape, so one program serves all of them, and all
    settings of a policy. Problem k draws from stream k of the seed, whatever the batch size.

    Args:
        denoiser: the dLLM.
        denoiser_params: its parameters.
        tokenizer: turns canvases into text.
        task: checks the responses.
        examples: the n problems.
        prompts: their prompts as NumPy arrays [n, P], left-padded.
        policy: chooses the positions to fill.
        policy_params: its parameters and settings.
        settings: shape of the rollout; its slots are `batch_size`, and records are not kept,
            whatever it says.
        seed: seed of everything that is drawn, at least 0.
        batch_size: problems per forward, at most n are used.
        rows: problems per rollout, n by default. Measurements on fewer problems than this share
            the program of those on as many: the rows that they lack cost nothing.

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
    batch_size = min(batch_size, size)
    settings = dataclasses.replace(settings, record=False, slots=batch_size, slot_groups=1)
    params = jax.tree.map(_strong, policy_params)
    key = jax.random.key(seed)

    def arguments(start: int) -> tuple[Any, ...]:
        index = np.arange(start, start + size)
        row = np.minimum(index, n - 1)
        batch = Prompts(
            tokens=jnp.asarray(prompts.tokens[row]),
            mask=jnp.asarray(prompts.mask[row]),
            present=jnp.asarray(index < n),
        )
        keys = row_keys(key, jnp.asarray(row))
        return denoiser, denoiser_params, policy, params, batch, keys, settings

    def dispatch(start: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        trajectory = rollout(*arguments(start))
        return trajectory.tokens, trajectory.nfe, trajectory.forwards

    def check(start: int, tokens: np.ndarray) -> tuple[list[str], Callable[[], list[float]]]:
        responses = tokenizer.decode_batch(tokens)
        return responses, start_checks(task, examples[start : start + len(tokens)], responses)

    began = time.perf_counter()
    # The call below finds this program in JAX's cache; so do later calls with other settings.
    rollout.lower(*arguments(0)).compile()
    compile_seconds = time.perf_counter() - began

    starts = list(range(0, n, size))
    canvases, nfes, forwards, checks = [], [], 0, []
    with ThreadPoolExecutor(max_workers=1) as checker:
        began = time.perf_counter()
        pending = dispatch(starts[0])
        for index, start in enumerate(starts):
            current = pending
            if index + 1 < len(starts):
                pending = dispatch(starts[index + 1])
            tokens, nfe, executed = jax.device_get(current)
            real = min(size, n - start)
            canvases.append(tokens[:real])
            nfes.append(nfe[:real])
            forwards += int(executed)
            checks.append(checker.submit(check, start, tokens[:real]))
        seconds = time.perf_counter() - began
        started = [future.result() for future in checks]
    checked = [(responses, scores()) for responses, scores in started]
    canvas = np.concatenate(canvases)
    return Measurement(
        correct=np.array([score for _, scores in checked for score in scores], np.float32),
        nfe=np.concatenate(nfes),
        responses=[text for texts, _ in checked for text in texts],
        seconds=seconds,
        compile_seconds=compile_seconds,
        batch_size=batch_size,
        forwards=forwards,
        tokens=_count_tokens(canvas, tokenizer.eos_id, tokenizer.mask_id),
        still_masked=float((canvas == tokenizer.mask_id).mean()),
    )


def _strong(leaf: Any) -> jax.Array:
    """Without weak type, which would be another program than the same setting as an array."""
    return jnp.asarray(leaf, jnp.result_type(leaf))


def _count_tokens(canvas: Int[np.ndarray, "n L"], eos_id: int, mask_id: int) -> int:
    before_eos = np.cumsum(canvas == eos_id, axis=1) == 0
    return int((before_eos & (canvas != mask_id)).sum())
