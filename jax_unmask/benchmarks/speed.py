"""Times rollouts, alone or in turns with another implementation."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jax_unmask.benchmarks import hardware
from jax_unmask.benchmarks.hardware import MatmulPeak
from jax_unmask.benchmarks.reference import Reference, ReferenceSpeed, Result, compare
from jax_unmask.benchmarks.subjects import Subject
from jax_unmask.policies.base import Params, Policy, strong
from jax_unmask.rollout import (
    Prompts,
    RolloutSettings,
    Trajectory,
    rollout,
    row_keys,
    scored_positions,
)
from jax_unmask.rollout.caching import NONE
from jax_unmask.rollout.flops import RolloutFlops, rollout_flops
from jax_unmask.rollout.trajectory import check_finite
from jax_unmask.runtime import streams
from jax_unmask.runtime.compilation import CompileTimes, announced


@dataclasses.dataclass(frozen=True)
class Speed:
    """Timings of one batch size B. Rates come from the median of `seconds`."""

    batch_size: int
    slots: int  # Rows per forward.
    cache: str
    prompt_length: int  # Padding included.
    compile_seconds: float  # Tracing included.
    compiled_from_cache: bool  # Of JAX's persistent cache: compile_seconds means little then.
    seconds: list[float]  # Of each repeat, from the call to the tokens on the host.
    seconds_per_rollout: float  # Their median.
    sequences_per_second: float
    tokens_per_second: float  # Canvas positions, B * L / seconds_per_rollout.
    nfe_mean: float
    forwards: int  # All that were executed.
    full_forwards: int  # Of these, over whole sequences of `full_rows` rows each; ...
    full_rows: int
    cached_forwards: int  # ... and those that read the cache.
    cost_mean: float  # Of a row's forwards, in forwards over its whole sequence.
    seconds_per_forward: float  # Output projection, policy and bookkeeping included.
    useful_forward_fraction: float  # Executed row forwards that a row still needed, by cost.
    flops_per_rollout: int  # Of the executed forwards, see `rollout.flops`.
    flops_per_forward: float
    compiled_flops_per_rollout: int | None  # See `compiled_flops`; None where it was not asked.
    tflops_per_second: float
    share_of_matmul_peak: float  # Of the peak that was measured in the same run.
    program_bytes: int | None  # Memory of the compiled rollout, if the backend tells.
    peak_bytes: int | None  # The most that this process has held on the device so far, likewise.


def measure_speed(
    subject: Subject,
    policy: Policy,
    policy_params: Params,
    prompts: Prompts,
    settings: RolloutSettings,
    *,
    repeats: int,
    seed: int,
    peak: MatmulPeak,
    compile_times: CompileTimes,
    reference: Reference | None = None,
    compiled_flops: RolloutFlops | None = None,
) -> tuple[Speed, ReferenceSpeed | None]:
    """Times the rollout of one batch.

    Args:
        subject: the denoiser.
        policy: chooses the positions to fill.
        policy_params: its parameters and settings.
        prompts: NumPy arrays [B, P].
        settings: shape of the rollout, slots included; records are not kept whatever it says.
        repeats: timed rollouts, after one that is not.
        seed: seed of what the policy draws.
        peak: speed of matrix products on this device.
        compile_times: running count of compilations.
        reference: another implementation, timed in turns with ours on the same prompts.
        compiled_flops: what the compiler counts in a step, if it was asked.
    """
    batch, prompt_length = prompts.tokens.shape
    arguments = (
        subject.denoiser,
        subject.params,
        policy,
        strong(policy_params),
        jax.tree.map(jnp.asarray, prompts),
        row_keys(streams.stream(streams.root(seed), "sampling"), batch),
        dataclasses.replace(settings, record=False),
    )

    def ours() -> tuple[Trajectory, Result]:
        done = rollout(*arguments)
        return done, jax.device_get((done.tokens, done.nfe))

    hits = compile_times.cache_hits
    began = time.perf_counter()
    cache = NONE if settings.cache is None else str(settings.cache)
    lowered = rollout.lower(*arguments)
    with announced(f"timed rollouts of {batch}, cache {cache}, with {subject.name}"):
        compiled = lowered.compile()
    compile_seconds = time.perf_counter() - began
    from_cache = compile_times.cache_hits > hits

    done, filled = ours()
    comparison = None
    if reference is None:
        (seconds,) = time_in_turns([ours], repeats)
    else:
        lists = [row[real].tolist() for row, real in zip(prompts.tokens, prompts.mask, strict=True)]

        def theirs() -> Any:
            return reference.generate(lists, settings)

        returned = theirs()
        seconds, their_seconds = time_in_turns([ours, theirs], repeats)
        comparison = compare(seconds, their_seconds, filled, returned)

    median = statistics.median(seconds)
    done = jax.device_get(done)
    check_finite(done.confidence, done.step_map)
    kinds, forwards = done.by_kind, int(done.forwards)
    counted = rollout_flops(
        subject.denoiser.config, settings, prompt_length, scored_positions(policy, settings)
    )
    products = counted.executed(done)
    tflops = products / median / 1e12
    return Speed(
        batch_size=batch,
        slots=done.slots,
        cache=cache,
        prompt_length=prompt_length,
        compile_seconds=compile_seconds,
        compiled_from_cache=from_cache,
        seconds=seconds,
        seconds_per_rollout=median,
        sequences_per_second=batch / median,
        tokens_per_second=batch * settings.gen_length / median,
        nfe_mean=float(done.nfe.mean()),
        forwards=forwards,
        full_forwards=forwards if kinds is None else int(kinds.full_executed),
        full_rows=done.slots if kinds is None else kinds.full_rows,
        cached_forwards=0 if kinds is None else int(kinds.cached_executed),
        cost_mean=float(done.cost.mean()),
        seconds_per_forward=median / forwards,
        useful_forward_fraction=float(done.useful_forward_fraction),
        flops_per_rollout=products,
        flops_per_forward=products / forwards,
        compiled_flops_per_rollout=compiled_flops.executed(done) if compiled_flops else None,
        tflops_per_second=tflops,
        share_of_matmul_peak=tflops / peak.tflops_per_second,
        program_bytes=hardware.program_bytes(compiled),
        peak_bytes=hardware.peak_bytes(),
    ), comparison


def time_in_turns(contestants: Sequence[Callable[[], object]], repeats: int) -> list[list[float]]:
    """Wall time of each call of each contestant.

    They take turns (A B, B A, A B, ...), so that other load on the machine affects all equally and
    none always runs first.
    """
    seconds: list[list[float]] = [[] for _ in contestants]
    for turn in range(repeats):
        order = range(len(contestants))
        for index in order if turn % 2 == 0 else reversed(order):
            began = time.perf_counter()
            contestants[index]()
            seconds[index].append(time.perf_counter() - began)
    return seconds
