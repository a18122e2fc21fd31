"""Writes what a sweep found: summary.md, frontier.png and report.html."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax_unmask
from jax_unmask.environment.settings import RunSettings
from jax_unmask.report import curves, page, payload, plots, tables
from jax_unmask.report.results import NO_CACHE, Result
from jax_unmask.runtime.files import atomic_write

REPORT = "report.html"
_NOTE = (
    "The same problems, as each policy answered them: first those on which the policies disagree, "
    "that all got wrong and that all got right, in turn."
)

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Swept:
    """Results of one task, denoiser and canvas length.

    Attributes:
        title, device: name of the task and denoiser, and what they were measured on.
        split: the split to report; `results` has those of all splits.
        problems: recorded generations, see `report.traces.problem`.
    """

    title: str
    split: str
    results: list[Result]
    problems: list[dict[str, Any]]
    device: str


def curve_files(config: RunSettings, workdir: pathlib.Path) -> list[pathlib.Path]:
    """Metrics of the training runs to show: of this workdir, and what `eval.curves` names."""
    own = workdir / curves.METRICS
    return [*([own] if own.is_file() else []), *curves.find(config.eval.curves)]


def write(swept: Sequence[Swept], workdir: pathlib.Path, metrics: Sequence[pathlib.Path]) -> None:
    """Writes the report and prints the tables.

    Args:
        swept: what was found, in the order of the report.
        workdir: receives summary.md, report.html and frontier.png; with several parts
            frontier-1.png, frontier-2.png, ...
        metrics: metrics of training runs, whose curves are shown.
    """
    markdown, text = (
        "\n".join(tables.summary(p.results, p.split, title=p.title, markdown=m) for p in swept)
        for m in (True, False)
    )
    atomic_write(workdir / "summary.md", markdown)
    for index, part in enumerate(swept, start=1):
        name = "frontier.png" if len(swept) == 1 else f"frontier-{index}.png"
        reported = [result for result in part.results if result.split == part.split]
        plots.draw_frontier(workdir / name, reported, title=part.title)
        if any(result.cache != NO_CACHE for result in reported):
            # With caches, forwards differ in cost, so the picture over cost is drawn too.
            path = workdir / name.replace("frontier", "frontier_cost")
            plots.draw_frontier(path, reported, title=part.title, cost=True)
    devices = ", ".join(dict.fromkeys(part.device for part in swept))
    day = time.strftime("%Y-%m-%d", time.gmtime())
    page.write_page(
        workdir / REPORT,
        title=swept[0].title if len(swept) == 1 else "Unmasking policies",
        subtitle=f"measured on {devices}; report of {day}, jax_unmask {jax_unmask.__version__}",
        sections=[payload.section(p.results, p.split, title=p.title) for p in swept],
        curves=curves.read_curves(metrics),
        problems=_problems(swept),
        problems_note=_NOTE,
        text=text,
    )
    sys.stdout.write(text)
    sys.stdout.flush()
    logger.info("Wrote results.jsonl, summary.md, frontier plots and report.html to %s.", workdir)


def _problems(swept: Sequence[Swept]) -> list[dict[str, Any]]:
    """The problems of all results; with several tasks or models, each is labelled with its own."""
    found: list[dict[str, Any]] = []
    for part in swept:
        for problem in part.problems:
            name = problem["name"] if len(swept) == 1 else f"{part.title}: {problem['name']}"
            # A first look needs no click.
            found.append({**problem, "name": name, "open": len(found) < 2})
    return found
