"""Timings as text for the terminal."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from jax_unmask.benchmarks.breakdown import PHASES, Breakdown
from jax_unmask.benchmarks.hardware import MatmulPeak, describe
from jax_unmask.benchmarks.reference import ReferenceSpeed
from jax_unmask.benchmarks.speed import Speed
from jax_unmask.benchmarks.subjects import Subject
from jax_unmask.report.tables import text_table
from jax_unmask.rollout import RolloutSettings
from jax_unmask.rollout.caching import NONE


def rollouts_text(
    policy: str,
    subject: Subject,
    settings: RolloutSettings,
    peak: MatmulPeak,
    rows: Sequence[Speed],
    comparisons: Sequence[ReferenceSpeed],
) -> str:
    """Table of a benchmark: subject, a line per batch size, peak, a line per comparison.

    After a median stand the fastest and the slowest in brackets.
    """
    header = (
        f"{subject.name}, {policy}, prompt {rows[0].prompt_length}, canvas {settings.gen_length}, "
        f"blocks of {settings.block_length}, {subject.denoiser.config.dtype}, "
        f"{describe()['device']}"
    )
    has_counts = any(row.compiled_flops_per_rollout is not None for row in rows)
    table = [
        [
            *(
                "batch",
                "slots",
                "cache",
                "compile s",
                "s/rollout",
                "sequences/s",
                "tokens/s",
                "NFE",
                "cost",
                "ms/forward",
            ),
            "TFLOP/rollout",
            *(["counted"] if has_counts else []),
            *("useful %", "TFLOP/s", "% of peak", "program MB", "peak MB"),
        ]
    ]
    table += [
        [
            str(row.batch_size),
            str(row.slots),
            row.cache,
            f"{row.compile_seconds:.2f}" + (" (cached)" if row.compiled_from_cache else ""),
            _spread(row.seconds),
            f"{row.sequences_per_second:.4g}",
            f"{row.tokens_per_second:.4g}",
            f"{row.nfe_mean:.2f}",
            f"{row.cost_mean:.2f}",
            f"{1e3 * row.seconds_per_forward:.4g}",
            f"{row.flops_per_rollout / 1e12:.4g}",
            *([_tera(row.compiled_flops_per_rollout)] if has_counts else []),
            f"{100 * row.useful_forward_fraction:.1f}",
            f"{row.tflops_per_second:.3g}",
            f"{100 * row.share_of_matmul_peak:.1f}",
            _megabytes(row.program_bytes),
            _megabytes(row.peak_bytes),
        ]
        for row in rows
    ]
    parts = [
        header,
        text_table(table),
        f"Peak: {peak.tflops_per_second:.3g} TFLOP/s, products of {peak.dtype} matrices of side "
        f"{peak.size}. FLOPs: exact count of the denoiser's matrix products"
        + ("; counted: all operations, by the compiler." if has_counts else "."),
    ]
    if comparisons:
        compared = [row for row in rows if row.cache == NONE]
        table = [
            [
                *("batch", "reference s/rollout", "sequences/s", "ours is faster by"),
                *("at equal NFE", "NFE ours", "NFE theirs", "equal rows %", "equal tokens %"),
            ]
        ]
        table += [
            [
                str(row.batch_size),
                _spread(other.seconds),
                f"{other.sequences_per_second:.4g}",
                f"{other.speedup:.2f} [{min(other.speedup_by_turn):.2f}, "
                f"{max(other.speedup_by_turn):.2f}]",
                f"{other.speedup_at_equal_nfe:.2f}",
                f"{row.nfe_mean:.2f}",
                f"{other.nfe_mean:.2f}",
                f"{100 * other.rows_equal:.1f}",
                f"{100 * other.positions_equal:.2f}",
            ]
            for row, other in zip(compared, comparisons, strict=True)
        ]
        parts.append(text_table(table))
    return "\n\n".join(parts)


def breakdown_text(measured: Breakdown) -> str:
    """A line per phase of a training step, and the rest in words."""
    table = [["phase", "ms/step", "share %"]]
    table += [
        [name, f"{1e3 * measured.phase_seconds[name]:.4g}", f"{100 * measured.shares[name]:.1f}"]
        for name in PHASES
    ]
    return (
        f"{text_table(table)}\n\n"
        f"{_spread(measured.seconds)} s per step ({measured.rollouts_per_step} rollouts, "
        f"{measured.rollouts_per_second:.4g} per second of rollout); first step, which compiles: "
        f"{measured.first_step_seconds:.1f} s. NFE {measured.nfe_mean:.2f}, "
        f"{100 * measured.useful_forward_fraction:.1f}% useful forwards. "
        f"{measured.programs_compiled} programs compiled after the first step."
    )


def _spread(seconds: Sequence[float]) -> str:
    middle = statistics.median(seconds)
    return f"{middle:.4g} [{min(seconds):.4g}, {max(seconds):.4g}]"


def _tera(flops: int | None) -> str:
    return "-" if flops is None else f"{flops / 1e12:.4g}"


def _megabytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e6:.4g}"
