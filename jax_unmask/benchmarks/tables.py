"""Timings as text for the terminal."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from jax_unmask.benchmarks.breakdown import PHASES, Breakdown
from jax_unmask.benchmarks.hardware import MatmulPeak, describe
from jax_unmask.benchmarks.reference import ReferenceSpeed
from jax_unmask.benchmarks.speed import Speed
from jax_unmask.benchmarks.subjects import Subject
from jax_unmask.report.tables import text_table
from jax_unmask.rollout import RolloutSettings
from jax_unmask.rollout.caching import NONE

Item = TypeVar("Item")


def rollouts_text(
    policy: str,
    subject: Subject,
    settings: RolloutSettings,
    peak: MatmulPeak,
    rows: Sequence[Speed],
    comparisons: Sequence[ReferenceSpeed],
) -> str:
    """Table of a benchmark; after a median stand the fastest and the slowest in brackets."""
    header = (
        f"{subject.name}, {policy}, prompt {rows[0].prompt_length}, canvas {settings.gen_length}, "
        f"blocks of {settings.block_length}, {subject.denoiser.config.dtype}, "
        f"{describe()['device']}"
    )
    has_counts = any(row.compiled_flops_per_rollout is not None for row in rows)
    counted = {"counted": lambda row: _tera(row.compiled_flops_per_rollout)} if has_counts else {}
    columns: dict[str, Callable[[Speed], object]] = {
        "batch": lambda row: row.batch_size,
        "slots": lambda row: row.slots,
        "cache": lambda row: row.cache,
        "compile s": lambda row: (
            f"{row.compile_seconds:.2f}" + (" (cached)" if row.compiled_from_cache else "")
        ),
        "s/rollout": lambda row: _spread(row.seconds),
        "sequences/s": lambda row: f"{row.sequences_per_second:.4g}",
        "tokens/s": lambda row: f"{row.tokens_per_second:.4g}",
        "NFE": lambda row: f"{row.nfe_mean:.2f}",
        "cost": lambda row: f"{row.cost_mean:.2f}",
        "ms/forward": lambda row: f"{1e3 * row.seconds_per_forward:.4g}",
        "TFLOP/rollout": lambda row: _tera(row.flops_per_rollout),
        **counted,
        "useful %": lambda row: f"{100 * row.useful_forward_fraction:.1f}",
        "TFLOP/s": lambda row: f"{row.tflops_per_second:.3g}",
        "% of peak": lambda row: f"{100 * row.share_of_matmul_peak:.1f}",
        "program MB": lambda row: _megabytes(row.program_bytes),
        "peak MB": lambda row: _megabytes(row.peak_bytes),
    }
    parts = [
        header,
        _table(columns, rows),
        f"Peak: {peak.tflops_per_second:.3g} TFLOP/s, products of {peak.dtype} matrices of side "
        f"{peak.size}. FLOPs: exact count of the denoiser's matrix products"
        + ("; counted: all operations, by the compiler." if has_counts else "."),
    ]
    if comparisons:
        compared: dict[str, Callable[[tuple[Speed, ReferenceSpeed]], object]] = {
            "batch": lambda pair: pair[0].batch_size,
            "reference s/rollout": lambda pair: _spread(pair[1].seconds),
            "sequences/s": lambda pair: f"{pair[1].sequences_per_second:.4g}",
            "ours is faster by": lambda pair: (
                f"{pair[1].speedup:.2f} "
                f"[{min(pair[1].speedup_by_turn):.2f}, {max(pair[1].speedup_by_turn):.2f}]"
            ),
            "at equal NFE": lambda pair: f"{pair[1].speedup_at_equal_nfe:.2f}",
            "NFE ours": lambda pair: f"{pair[0].nfe_mean:.2f}",
            "NFE theirs": lambda pair: f"{pair[1].nfe_mean:.2f}",
            "equal rows %": lambda pair: f"{100 * pair[1].rows_equal:.1f}",
            "equal tokens %": lambda pair: f"{100 * pair[1].positions_equal:.2f}",
        }
        without_cache = [row for row in rows if row.cache == NONE]
        parts.append(_table(compared, list(zip(without_cache, comparisons, strict=True))))
    return "\n\n".join(parts)


def _table(columns: Mapping[str, Callable[[Item], object]], items: Sequence[Item]) -> str:
    """A line per item, with columns by their headings."""
    lines = [[str(cell(item)) for cell in columns.values()] for item in items]
    return text_table([list(columns), *lines])


def breakdown_text(measured: Breakdown) -> str:
    """A line per phase of a training step, and the rest in words."""
    columns = {
        "phase": lambda name: name,
        "ms/step": lambda name: f"{1e3 * measured.phase_seconds[name]:.4g}",
        "share %": lambda name: f"{100 * measured.shares[name]:.1f}",
    }
    rate, nfe, useful = (
        measured.rollouts_per_second,
        measured.nfe_mean,
        measured.useful_forward_fraction,
    )
    return (
        f"{_table(columns, PHASES)}\n\n"
        f"{_spread(measured.seconds)} s per step ({measured.rollouts_per_step} rollouts"
        f"{'' if rate is None else f', {rate:.4g} per second of rollout'}); first step, which "
        f"compiles: {measured.first_step_seconds:.1f} s. "
        f"{'' if nfe is None else f'NFE {nfe:.2f}. '}"
        f"{'' if useful is None else f'{100 * useful:.1f}% useful forwards. '}"
        f"{measured.programs_compiled} programs compiled after the first step."
    )


def _spread(seconds: Sequence[float]) -> str:
    middle = statistics.median(seconds)
    return f"{middle:.4g} [{min(seconds):.4g}, {max(seconds):.4g}]"


def _tera(flops: int | None) -> str:
    return "-" if flops is None else f"{flops / 1e12:.4g}"


def _megabytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e6:.4g}"
