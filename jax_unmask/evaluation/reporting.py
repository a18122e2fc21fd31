"""Writes what a sweep found: summary.md, frontier.png and report.html."""

import dataclasses
import pathlib
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax_unmask
from jax_unmask import tasks
from jax_unmask.environment.settings import RunSettings
from jax_unmask.report import curves, page, payload, plots, tables
from jax_unmask.report.results import NO_CACHE, Result
from jax_unmask.runtime.exports import EXPORTS
from jax_unmask.runtime.files import atomic_write
from jax_unmask.runtime.metrics import METRICS
from jax_unmask.runtime.terminal import conclude
from jax_unmask.runtime.terminal import verdict as verdict_lines
from jax_unmask.settings import flat

REPORT = "report.html"
_NOTE = (
    "The same problems, as each policy answered them: first those on which the policies disagree, "
    "that all got wrong and that all got right, in turn."
)


@dataclasses.dataclass(frozen=True)
class Swept:
    """Results of one task, denoiser and canvas length.

    Attributes:
        title, device: name of the task and denoiser, and what they were measured on.
        split: the split to report; `results` has those of all splits.
        problems: recorded generations, see `report.traces.problem`.
        block_length: that of the training.
    """

    title: str
    split: str
    results: list[Result]
    problems: list[dict[str, Any]]
    device: str
    block_length: int | None = None


def curve_files(config: RunSettings, workdir: pathlib.Path) -> list[pathlib.Path]:
    """Metrics of the training runs to show: of this workdir, and what `eval.curves` names."""
    own = workdir / METRICS
    return [*([own] if own.is_file() else []), *curves.find(config.eval.curves)]


def write(
    swept: Sequence[Swept],
    workdir: pathlib.Path,
    metrics: Sequence[pathlib.Path],
    config: RunSettings,
) -> None:
    """Writes the report and prints the verdict.

    Args:
        swept: what was found, in the order of the report.
        workdir: receives summary.md, report.html and frontier.png (.svg, .pdf); with several parts
            frontier-1.png, frontier-2.png, ...
        metrics: metrics of training runs, whose curves are shown.
        config: the settings, for the end of the page.
    """
    markdown, text = (
        "\n".join(tables.summary(p.results, p.split, title=p.title, markdown=m) for p in swept)
        for m in (True, False)
    )
    found = verdict(swept, workdir, config)
    listed = "".join(f"- {line}\n" for line in found)
    atomic_write(workdir / "summary.md", f"{listed}\n{markdown}")
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
        about=_about(workdir),
        config="\n".join(f"{key} = {value!r}" for key, value in flat(config).items()),
    )
    conclude(found)


def verdict(swept: Sequence[Swept], workdir: pathlib.Path, config: RunSettings) -> list[str]:
    """The findings, the files that hold them, and the next command: at most five lines."""
    lines = [
        tables.headline(p.results, p.split, title=p.title, block_length=p.block_length)
        for p in swept
    ]
    shown = tasks.shown_problem(config.task.name, config.task.path)
    then = ["generate", f"--policy=learned:{workdir}", *shown, "--trace"]
    return verdict_lines(
        lines,
        places=f"Page: {workdir / REPORT}; tables: {workdir / 'summary.md'}",
        then=then if (workdir / EXPORTS["policy"].directory).is_dir() else (),
    )


def _about(workdir: pathlib.Path) -> list[tuple[str, str]]:
    """Run, command and commit that a report is from."""
    program, *arguments = sys.argv
    package = pathlib.Path(jax_unmask.__file__).parent
    module = pathlib.Path(program).absolute()
    if module.is_relative_to(package):
        name = ".".join(module.relative_to(package.parent).with_suffix("").parts)
        program = f"python -m {name.removesuffix('.__main__')}"
    about = [
        ("run", workdir.absolute().name),
        ("command", shlex.join([program, *arguments]).replace(shlex.quote(program), program, 1)),
        ("jax_unmask", jax_unmask.__version__),
    ]
    described = subprocess.run(
        ["git", "-C", str(package), "describe", "--always", "--abbrev=40", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    is_checkout = (package.parent / ".git").exists()
    return [*about, ("commit", described.stdout.strip())] if is_checkout else about


def _problems(swept: Sequence[Swept]) -> list[dict[str, Any]]:
    """The problems of all results; with several tasks or models, each is labelled with its own."""
    found: list[dict[str, Any]] = []
    for part in swept:
        for problem in part.problems:
            name = problem["name"] if len(swept) == 1 else f"{part.title}: {problem['name']}"
            # A first look needs no click.
            found.append({**problem, "name": name, "open": len(found) < 2})
    return found
