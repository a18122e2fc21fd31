"""Tables of results: plain text for the terminal, Markdown for summary.md."""

import io
from collections.abc import Sequence

import rich.box
import rich.console
import rich.table

from jax_unmask.report import frontier
from jax_unmask.report.frontier import Comparison, Point, Saving
from jax_unmask.report.results import (
    HEADINGS,
    HEURISTIC,
    NO_CACHE,
    TRAINED,
    Result,
    Standing,
    by_series,
    label_order,
    over_training_seeds,
    settings_text,
    standings,
)

_ALL = "all"
Table = list[list[str]]
"""Rows of cells, the header first."""


def text_table(table: Table) -> str:
    """Aligned columns under a rule; numbers to the right.

    >>> print(text_table([["name", "NFE"], ["threshold", "4.00"]]))
    name         NFE
    ────────────────
    threshold   4.00
    """
    shown = rich.table.Table(box=rich.box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading, *cells in zip(*table, strict=True):
        shown.add_column(heading, justify="right" if _is_numeric(cells) else "left", no_wrap=True)
    for row in table[1:]:
        shown.add_row(*row)
    text = io.StringIO()
    rich.console.Console(file=text, width=10_000, markup=False, highlight=False).print(shown)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def markdown_table(table: Table) -> str:
    """The table in Markdown; numbers to the right."""
    right = [_is_numeric(row[k] for row in table[1:]) for k in range(len(table[0]))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = "|" + "|".join("--:" if on_right else "---" for on_right in right) + "|"
    return "\n".join([line(table[0]), rule, *(line(row) for row in table[1:])])


def results_table(results: Sequence[Result]) -> Table:
    """One line per operating point, by group, method and NFE.

    A star marks the points of the frontier of the whole table. Accuracy is in per cent; after ±
    stand standard errors. With caches, forwards differ in cost, and a column has it in forwards
    over the whole sequence.
    """
    on_frontier = {id(point) for point in frontier.pareto(r.point for r in results)}
    methods = {result.series: k for k, result in reversed(list(enumerate(results)))}
    ordered = sorted(
        results, key=lambda r: (label_order(r.label), r.label, methods[r.series], r.point.nfe)
    )
    header = ["", "group", "method", "settings", "accuracy %", "NFE", "ms/sequence", "unfilled %"]
    has_costs = any(result.cache != NO_CACHE for result in results)
    if has_costs:
        header.insert(6, "cost")
    most_seeds = max((result.sampling_seeds for result in results), default=1)
    if most_seeds > 1:
        header.insert(5, f"pass@{most_seeds} %")
    table = [header]
    for result in ordered:
        point = result.point
        passed: list[str] = []
        if most_seeds > 1:
            known = result.sampling_seeds == most_seeds
            passed = [f"{100 * result.pass_at:.1f}" if known else "-"]
        cost = [f"{result.cost:.2f} ± {result.cost_se:.2f}"] if has_costs else []
        table.append(
            [
                "*" if id(point) in on_frontier else "",
                HEADINGS.get(result.label, result.label) + _seeds(result)
                if result.is_learned
                else result.label,
                point.method,
                settings_text(point.settings) or "-",
                _percent(point.accuracy, point.accuracy_se),
                *passed,
                f"{point.nfe:.2f} ± {point.nfe_se:.2f}",
                *cost,
                f"{1000 * result.seconds_per_sequence:.3g}",
                f"{100 * result.still_masked:.2f}",
            ]
        )
    return table


def standings_table(found: Sequence[Standing]) -> Table:
    """One line per learned operating point: gains over the heuristics, and what these reach.

    Accuracy gained at equal forwards and forwards saved at equal accuracy are against the
    heuristics' frontier, linear between settings; one can be large where the other is small.
    """
    header = ["policy", "settings", "accuracy % @ NFE", "points gained at equal NFE", "in SE"]
    header += ["forwards saved at equal accuracy", "best heuristic at equal or lower NFE"]
    table = [[*header, "accuracy % @ NFE", "gain over it", "in SE"]]
    constants = constant_settings(found)
    for standing in found:
        point, best = standing.result.point, standing.at_most.reference
        table.append(
            [
                f"{point.method} ({HEADINGS.get(standing.result.label, standing.result.label)}"
                f"{_seeds(standing.result)})",
                settings_text(each for each in point.settings if each not in constants) or "-",
                f"{100 * point.accuracy:.1f} @ {point.nfe:.2f}",
                *_gain(standing.interpolated),
                saved_text(standing.saved),
                "none is this fast"
                if best is None
                else f"{best.method} {settings_text(best.settings)}".strip(),
                "-" if best is None else f"{100 * best.accuracy:.1f} @ {best.nfe:.2f}",
                *_gain(standing.at_most),
            ]
        )
    return table


def constant_settings(found: Sequence[Standing]) -> list[tuple[str, float | str]]:
    """Settings that all of several learned points have, of which names need not tell."""
    first, *others = [standing.result.point.settings for standing in found] or [()]
    return [each for each in first if others and all(each in other for other in others)]


def areas(
    results: Sequence[Result], validation: Sequence[Result] = ()
) -> list[tuple[str, str, float]]:
    """Area under the envelope over the NFE budgets of the canvas, see `frontier.area`.

    Args:
        results: results of one block length.
        validation: results of the heuristics on the validation split, which choose the settings of
            groups that were measured there as a whole.

    Returns:
        (label, method, area) of every method with several settings, of all heuristics together,
        and of these with all learned policies. One setting is no frontier: its area would be
        compared with those of whole families.
    """
    groups = {name: found for name, found in by_series(results).items() if len(found) > 1}
    heuristics = [result for result in results if result.label == HEURISTIC]
    if heuristics:
        groups[HEURISTIC, "all heuristics"] = heuristics
        learned = [result for result in results if result.is_learned]
        if learned:
            groups[_ALL, "all heuristics and learned policies"] = heuristics + learned
    low, high = frontier.budgets(results[0].gen_length)
    chooses = [each.point for each in validation]
    known = {point.identity for point in chooses}

    def area(points: list[Point]) -> float:
        is_chosen = known.issuperset(point.identity for point in points)
        return frontier.area(points, low, high, chooses if is_chosen else None)

    return [
        (*name, area([result.point for result in groups[name]]))
        for name in sorted(groups, key=lambda name: (label_order(name[0]), name))
    ]


def validation_of(results: Sequence[Result], block_length: int) -> list[Result]:
    """Results of a block length on the validation split; none if there are several caches."""
    found = [r for r in results if r.split == "validation" and r.block_length == block_length]
    return found if len({result.cache for result in found}) == 1 else []


def areas_table(results: Sequence[Result], validation: Sequence[Result] = ()) -> Table:
    """`areas` as a table, in per cent."""
    found = areas(results, validation)
    rows = [[label, method, f"{100 * value:.1f}"] for label, method, value in found]
    return [["group", "method", "area %"], *rows]


def summary(results: Sequence[Result], split: str, *, title: str, markdown: bool) -> str:
    """The whole report as text: per block length the table and the standings, then the verdict.

    `results` are those of all splits; those of "validation" only choose heuristic settings.
    """
    render = markdown_table if markdown else text_table
    mark = "## " if markdown else ""
    parts = [("# " if markdown else "") + title]
    reported = over_training_seeds([result for result in results if result.split == split])
    found = standings(results, split)
    for block in sorted({result.block_length for result in reported}):
        here = [result for result in reported if result.block_length == block]
        full = " (full diffusion)" if block == here[0].gen_length else ""
        parts.append(f"{mark}Block length {block}{full}, n = {here[0].point.n} ({split})")
        parts.append(render(results_table(here)))
        compared = [standing for standing in found if standing.result.block_length == block]
        if compared:
            parts.append(
                f"{mark}Learned policies against heuristics, block length {block} "
                f"(heuristic settings chosen on {compared[0].chosen_on})"
            )
            parts.append(render(standings_table(compared)))
            if constants := constant_settings(compared):
                parts.append(f"All of these policies have {settings_text(constants)}.")
            parts.append(verdict(compared))
        low, high = frontier.budgets(here[0].gen_length)
        parts.append(
            f"{mark}Area under the envelope, block length {block}: mean accuracy of the best "
            f"setting over NFE budgets from {low:g} to {high:g}, on a logarithmic scale"
        )
        parts.append(render(areas_table(here, validation_of(results, block))))
    parts.append(
        "± is one standard error over problems (and training seeds, where there are several). "
        "* lies on the frontier of its table. NFE counts denoiser forwards per sequence."
    )
    return "\n\n".join(parts) + "\n"


def headline(
    results: Sequence[Result], split: str, *, title: str, block_length: int | None = None
) -> str:
    """The finding in a sentence: of the policy that was trained here, or else of the best one.

    `block_length` is that of the training; a policy that was trained here is measured by it, and
    others by the longest that they have.
    """
    found = standings(results, split)
    trained = [standing for standing in found if standing.result.label == TRAINED]
    if not found:
        measured = [result for result in results if result.split == split]
        best = max(measured, key=lambda each: (each.point.accuracy, -each.point.nfe))
        near = [each for each in measured if each.point.accuracy >= best.point.accuracy - 0.01]
        fast = min(near, key=lambda each: each.point.nfe)
        text = f"{title}: the best is {_name(best.point)}: {_reached(best)}"
        almost = f"; within a point of it {_name(fast.point)}: {_reached(fast)}"
        return text + (f"{almost}." if fast is not best else ".")
    lengths = {standing.result.block_length for standing in trained or found}
    block = block_length if trained and block_length in lengths else max(lengths)
    standing = max(
        (each for each in trained or found if each.result.block_length == block),
        key=lambda each: each.interpolated.significance,
    )
    gain, _ = _gain(standing.interpolated)
    points_gained = f"{gain} points" if gain != "-" else "no heuristic is as fast"
    saved = saved_text(standing.saved)
    saved += " forwards saved" if standing.saved.reached else ""
    return (
        f"{title}: {_name(standing.result.point)} has {_reached(standing.result, ' right')}. "
        f"Against the heuristics: {points_gained} at equal forwards, {saved} at equal accuracy."
    )


def _name(point: Point) -> str:
    return f"{point.method} {settings_text(point.settings)}".strip()


def _reached(result: Result, right: str = "") -> str:
    point, block = result.point, result.block_length
    where = "whole canvas" if block == result.gen_length else f"blocks of {block}"
    accuracy = _percent(point.accuracy, point.accuracy_se)
    return f"{accuracy} %{right} in {point.nfe:.2f} forwards ({where})"


def verdict(found: Sequence[Standing]) -> str:
    """A text that names where learned policies win clearly, by both gains, and where they lose."""
    against = [each for each in found if each.at_most.reference is not None]
    won = "; ".join(
        f"{_where(s.at_most)} (forwards saved at equal accuracy: {saved_text(s.saved)})"
        for s in against
        if s.at_most.gain >= 0.05 and s.at_most.significance >= 3
    )
    lost = "; ".join(_where(s.at_most) for s in against if s.at_most.significance < -2)
    alone = "; ".join(_where(s.at_most) for s in found if s.at_most.reference is None)
    return (
        "At least 5 points and 3 SE above the best heuristic at equal or lower NFE: "
        f"{won or 'nowhere'}. More than 2 SE below it: {lost or 'nowhere'}."
        + (f" Faster than every heuristic: {alone}." if alone else "")
    )


def _where(comparison: Comparison) -> str:
    point = comparison.point
    settings = f" ({settings_text(point.settings)})" if point.settings else ""
    return f"{point.method}{settings} @ {point.nfe:.2f}"


def saved_text(saved: Saving) -> str:
    """Forwards saved with their error, or why there are none."""
    if not saved.reached:
        return "no heuristic is as accurate"
    least = "at least " if saved.reached < saved.seeds else ""
    return f"{least}{saved.forwards:+.2f} ± {saved.se:.2f}"


def _gain(comparison: Comparison) -> tuple[str, str]:
    """The gain, and how many standard errors it is."""
    if comparison.reference is None:
        return "-", "-"
    gain = f"{100 * comparison.gain:+.1f} ± {100 * comparison.se:.1f}"
    return gain, f"{comparison.significance:+.1f}"


def _percent(value: float, error: float) -> str:
    return f"{100 * value:.1f} ± {100 * error:.1f}"


def _seeds(result: Result) -> str:
    return f", {result.training_seeds} training seeds" if result.training_seeds > 1 else ""


def _is_numeric(cells: object) -> bool:
    """Whether all cells of a column are numbers (with errors, or a dash for none)."""
    texts = [cell for cell in cells if cell and cell != "-"]  # type: ignore[attr-defined]
    return bool(texts) and all(text.lstrip("+-")[:1].isdigit() for text in texts)
