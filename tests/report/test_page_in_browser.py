"""The report page in a headless browser: it draws, answers to mouse and keys, and stays safe."""

import json

import numpy as np
import pytest

import browser
import reports as made
from jax_unmask.report import page, payload, traces

pytestmark = browser.MARKS


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    odds = np.stack([np.full((2, 4), 0.25), np.full((2, 4), 0.75)])
    lanes = [
        made.one_trace(method="learned", probability=odds, score=1.0),
        made.one_trace(method="heuristic", score=0.0),
    ]
    right = [made.one_trace(method="learned", score=1.0)]
    page.write_page(
        path,
        title="A report",
        sections=[
            payload.section(
                made.measured(
                    made.row("heuristic", "threshold", [1, 0] * 5, 4, threshold=0.5),
                    made.row("heuristic", "random", [0, 0] * 5, 2, tokens_per_step=8.0),
                    made.row("shipped", "p", [1, 1] * 5, 3),
                ),
                "test",
                title="sudoku",
            )
        ],
        about=[("command", "python -m jax_unmask.eval --workdir=x")],
        config="train.steps = 3",
        curves=[
            {"name": "r", "steps": [1, 2, 3], "metrics": {"reward": [0.1, 0.5, 0.3]}},
            {"name": "s", "steps": list(range(30)), "metrics": {"reward": [0.1, 0.5] * 15}},
        ],
        problems=[traces.problem("one", "2 + 2", lanes), traces.problem("two", "3 + 3", right)],
    )
    return path.as_uri()


@pytest.fixture
def opened(tab, report):
    tab.errors.clear()
    tab.requests.clear()
    tab.open(report)
    yield tab
    assert tab.errors == []
    assert [url for url in tab.requests if url != report and not url.startswith("data:")] == []


def count(tab, selector):
    return tab.run(f"document.querySelectorAll({json.dumps(selector)}).length")


def text(tab, selector):
    return tab.run(f"document.querySelector({json.dumps(selector)}).textContent")


def test_has_every_part(opened):
    assert text(opened, "h1") == "A report"
    parts = opened.run("[...document.querySelectorAll('section')].map((node) => node.id)")
    assert parts == ["frontier", "tables", "training", "examples", "viewer"]
    assert count(opened, "#frontier figure path[stroke='var(--ink)']") == 1
    assert count(opened, "#training figure svg path") >= 2
    assert count(opened, "#tables tbody tr") == 6
    assert "jax_unmask.eval" in text(opened, "footer dl")
    assert text(opened, "footer pre") == "train.steps = 3"


def test_points_tell_their_numbers(opened):
    opened.run("document.querySelector('#frontier figure svg').focus()")
    opened.key("ArrowRight")
    assert "random" in text(opened, "#tooltip")
    assert "tokens_per_step=8" in text(opened, "#tooltip")
    opened.key("ArrowRight")
    assert "accuracy 100.0 % [72.2, 100.0]" in text(opened, "#tooltip")
    opened.key("Escape")
    assert opened.run("document.querySelector('#tooltip').hidden")


def test_accuracy_can_be_shown_against_time(opened):
    select = "document.querySelector('#frontier select')"
    # Without caches the work of a text is its number of forwards.
    names = opened.run(f"[...{select}.options].map((option) => option.value)")
    assert names == ["nfe", "ms"]
    opened.run(f"{select}.value = 'ms', {select}.dispatchEvent(new Event('change'))")
    assert "measured milliseconds per sequence" in text(opened, "#frontier figure svg")


def test_series_can_be_hidden(opened):
    before = count(opened, "#frontier figure svg polyline")
    # With the pointer on the button, as people do it.
    opened.point_at("#frontier .legend button")
    assert count(opened, "#frontier figure svg g[opacity='0.15']") > 0
    opened.run("document.querySelector('#frontier .legend button').click()")
    assert count(opened, "#frontier figure svg polyline") == before - 1
    assert count(opened, "#frontier figure svg g[opacity='0.15']") == 0


def button(name):
    return (
        "[...document.querySelectorAll('#frontier button')]"
        f".find((node) => node.textContent === {json.dumps(name)})"
    )


def test_the_frontier_alone(opened):
    marks = "#frontier figure svg g g path[fill]"
    every = count(opened, marks)
    opened.run(f"{button('frontier only')}.click()")
    assert 0 < count(opened, marks) < every
    opened.run(f"{button('frontier only')}.click()")
    assert count(opened, marks) == every


def test_a_rectangle_zooms(opened):
    ticks = "document.querySelector('#frontier figure svg').textContent"
    before = opened.run(ticks)
    box = opened.run(
        "(() => { const node = document.querySelector('#frontier figure svg');"
        "node.scrollIntoView({block: 'center'}); const b = node.getBoundingClientRect();"
        "return [b.x, b.y, b.width, b.height]; })()"
    )
    for kind, share in (("mousePressed", 0.3), ("mouseMoved", 0.6), ("mouseReleased", 0.6)):
        opened.call(
            "Input.dispatchMouseEvent",
            type=kind,
            x=box[0] + share * box[2],
            y=box[1] + share * box[3],
            button="left",
            buttons=1,
            clickCount=1,
        )
    assert opened.run(ticks) != before
    opened.run(f"{button('reset zoom')}.click()")
    assert opened.run(ticks) == before


def test_pictures_and_numbers_can_be_taken_away(opened):
    """The buttons save what these make."""
    opened.run(
        "window.saved = []; URL.createObjectURL = (blob) => { saved.push(blob); return '#'; };"
        "HTMLAnchorElement.prototype.click = () => {};"
    )
    for name in ("↓ CSV", "↓ SVG", "↓ PNG"):
        opened.run(f"{button(name)}.click()")
    opened.wait("saved.length === 3")
    table, drawing = (opened.run(f"saved[{k}].text()") for k in range(2))
    assert table.startswith("panel,group,method,settings,accuracy")
    assert len(table.splitlines()) == 4
    assert drawing.startswith("<svg") and 'stroke="rgb' in drawing and "var(" not in drawing
    assert opened.run("saved[2].size") > 1000
    assert opened.run("saved[2].slice(1, 4).text()") == "PNG"


def test_gains_come_first_and_fit_the_page(tab, report):
    tab.open(report, width=1200)
    heads = tab.run(
        "[...document.querySelectorAll('#tables > .scroll th')].map((n) => n.textContent)"
    )
    assert heads[1:3] == ["points gained at equal NFE", "forwards saved at equal accuracy"]
    tables = "[...document.querySelectorAll('#tables > .scroll')]"
    assert set(tab.run(f"{tables}.map((n) => n.scrollWidth - n.clientWidth)")) == {0}


def test_long_runs_are_smoothed_over_what_was_measured(opened):
    paths = "[...document.querySelectorAll('#training figure svg path[stroke-width]')]"
    short, measured, smooth = opened.run(f"{paths}.map((path) => path.getAttribute('d'))")
    assert opened.run(f"{paths}.map((path) => path.getAttribute('opacity'))") == ["1", "0.25", "1"]
    opened.run("document.querySelector('#training .bar button').click()")
    assert opened.run(f"{paths}.map((path) => path.getAttribute('d'))") == [short, measured]
    assert smooth != measured


def test_tables_sort(opened):
    cells = "[...document.querySelectorAll('#tables details td:nth-child(5)')]"
    cells += ".map((node) => parseFloat(node.textContent))"
    opened.run("document.querySelectorAll('#tables details th button')[4].click()")
    assert opened.run(cells) == [4, 3, 2]
    opened.run("document.querySelectorAll('#tables details th button')[4].click()")
    assert opened.run(cells) == [2, 3, 4]


def test_the_viewer_steps_through_both_policies(opened):
    filled = "#viewer .lane .token:not(.mask)"
    assert count(opened, "#viewer .lane") == 2
    assert count(opened, filled) == 8
    opened.run("document.querySelector('.viewer').focus()")
    opened.key("Home")
    assert count(opened, filled) == 0
    assert count(opened, "#viewer .token.mask.off") == 4
    opened.key("ArrowRight")
    assert count(opened, filled) == count(opened, "#viewer .token.new") == 4
    assert text(opened, "#viewer output") == "after step 1 of 2"
    opened.point_at("#viewer .lane .token:not(.mask)")
    shown = text(opened, "#tooltip")
    assert "position 1 of 4" in shown
    assert "filled at step 1 of 2" in shown
    assert "confidence 98.77 %" in shown
    assert "policy's probability of filling it 25.1 %" in shown
    opened.point_at("#viewer .lane .token.mask:last-child")
    assert "candidate “<6>”" in text(opened, "#tooltip")
    opened.point_at("#viewer .lane:nth-child(2) .token")
    assert "deterministic" in text(opened, "#tooltip")


def test_the_viewer_plays_and_changes_problems_and_policies(opened):
    opened.run("document.querySelector('#viewer .clock button').click()")
    opened.wait("document.querySelector('#viewer output').textContent === 'after step 2 of 2'")
    opened.run("document.querySelectorAll('#viewer .picker')[1].firstChild.click()")
    assert count(opened, "#viewer .lane") == 1
    opened.run("document.querySelectorAll('#viewer .picker button')[1].click()")
    assert text(opened, "#viewer .problem") == "3 + 3"


@pytest.mark.parametrize("width", [320, 390, 768])
def test_fits_narrow_screens(tab, report, width):
    tab.open(report, width=width, height=800)
    assert tab.run("document.documentElement.scrollWidth") <= width


def test_follows_the_colours_of_the_system_and_prints_light(tab, report):
    colour = "getComputedStyle(document.documentElement).backgroundColor"
    tab.open(report, dark=True)
    assert tab.run(colour) == "rgb(20, 23, 28)"
    tab.run("dispatchEvent(new Event('beforeprint'))")
    assert tab.run(colour) == "rgb(255, 255, 255)"
    tab.run("dispatchEvent(new Event('afterprint'))")
    assert tab.run(colour) == "rgb(20, 23, 28)"
    assert tab.pdf().startswith(b"%PDF")


def test_text_that_looks_like_markup_stays_text(tab, tmp_path):
    path = tmp_path / "hostile.html"
    data = made.hostile_page()
    path.write_text(page.whole(**data), encoding="utf-8")
    tab.errors.clear()
    tab.requests.clear()
    tab.open(path.as_uri())
    assert count(tab, "img") == 0
    assert count(tab, "script") == 2
    assert text(tab, "h1") == made.HOSTILE
    assert text(tab, "#examples pre") == made.HOSTILE
    tab.point_at("#viewer .token")
    assert "</script>" in text(tab, "#tooltip")
    assert tab.errors == []
    assert tab.requests == [path.as_uri()]
