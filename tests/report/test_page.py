"""The report page: its data, its escaping, and that it needs nothing but itself."""

import base64
import hashlib
import importlib.resources
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from jax_unmask.report import curves, intervals, page, payload, traces
from reports import HOSTILE, hostile_page, measured, one_trace, row, trajectory

WEB = importlib.resources.files("jax_unmask.report") / "web"


class Elements(HTMLParser):
    """Scripts and styles of a page, and every address in it."""

    def __init__(self, text):
        super().__init__()
        self.scripts, self.styles, self.addresses, self.meta = {}, [], [], {}
        self._open = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.addresses += [attrs[name] for name in ("src", "href", "action") if name in attrs]
        self._open = (tag, attrs.get("type", "code"))
        if tag == "meta" and "http-equiv" in attrs:
            self.meta[attrs["http-equiv"]] = attrs["content"]

    def handle_endtag(self, tag):
        self._open = None

    def handle_data(self, data):
        if self._open and self._open[0] == "script":
            self.scripts[self._open[1]] = self.scripts.get(self._open[1], "") + data
        elif self._open and self._open[0] == "style":
            self.styles.append(data)


def test_text_stays_text_and_only_own_scripts_run():
    data = hostile_page()
    text = page.whole(**data, text=HOSTILE)
    text.encode("utf-8")  # Has no lone surrogates.
    found = Elements(text)
    assert found.scripts.keys() == {"code", "application/json"}
    # What the page reads is exactly what was put in, and nothing of it is markup.
    assert json.loads(found.scripts["application/json"]) == json.loads(
        json.dumps(data | {"about": [], "config": ""})
    )
    assert "alert" not in found.scripts["code"]
    assert not re.search("<(img|!--)", text)
    assert found.addresses == []
    rules = dict(rule.split(" ", 1) for rule in found.meta["Content-Security-Policy"].split("; "))
    assert rules["default-src"] == "'none'"
    for rule, source in (("script-src", found.scripts["code"]), ("style-src", found.styles[0])):
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"


def test_a_page_is_written_even_if_text_has_no_utf8(tmp_path):
    file = tmp_path / "page.html"
    problem = traces.problem("p", "\ud800", [one_trace()])
    page.write_page(file, title="{{data}} {{script}}", text="{{style}}", problems=[problem])
    text = file.read_text(encoding="utf-8")
    data = json.loads(Elements(text).scripts["application/json"])
    assert data["problems"][0]["prompt"] == "\ud800"
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    # What was filled in is not filled again.
    assert "<title>{{data}} {{script}}</title>" in text and "<pre>{{style}}</pre>" in text


@pytest.mark.parametrize("path", list(WEB.iterdir()), ids=lambda path: path.name)
def test_scripts_never_make_markup_of_text_nor_fetch(path):
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|Function\(|fetch\(|"
        r"XMLHttp|import\(|@import|url\((?!#)|https?://(?!www\.w3\.org/2000/svg)",
        path.read_text(encoding="utf-8"),
    )


def test_a_section_has_points_intervals_and_comparisons():
    found = payload.section(
        measured(
            row("heuristic", "threshold", [1, 0, 0, 0] * 5, 4, threshold=0.5),
            row("heuristic", "threshold", [1, 1, 0, 0] * 5, 8, threshold=0.9),
            row("shipped", "p", [1, 1, 1, 0] * 5, 5),
        ),
        "test",
        title="sudoku",
    )
    (panel,) = found["panels"]
    assert [one["method"] for one in panel["series"]] == ["threshold", "p"]
    assert [one["learned"] for one in panel["series"]] == [False, True]
    slow = panel["series"][0]["points"][1]
    assert (slow["settings"], slow["accuracy"], slow["nfe"]) == ("threshold=0.9", 0.5, 8.0)
    assert slow["low"] < 0.5 < slow["high"]
    assert not slow["frontier"]
    (standing,) = panel["standings"]
    assert standing["at_most"]["gain"] == pytest.approx(0.5)
    assert standing["reference"] == "threshold threshold=0.5"
    assert panel["paired"]
    areas = {one["method"]: one["area"] for one in panel["areas"]}
    # 0.25 for budgets from 4 to 8, of those from 1 to 8, on a logarithmic scale.
    assert areas["threshold"] == pytest.approx(0.25 / 3)
    json.dumps(found, allow_nan=False)


def test_with_caches_points_have_costs():
    plain = row("heuristic", "threshold", [1, 0], 4)
    cached = plain | {"cache": "prefix", "cost_mean": 1.5, "cost_se": 0.1}
    for rows, costs in (
        ((plain, cached), {"threshold": 4.0, "threshold, prefix cache": 1.5}),
        ((plain,), {"threshold": None}),
    ):
        (panel,) = payload.section(measured(*rows), "test", title="t")["panels"]
        assert {one["method"]: one["points"][0]["cost"] for one in panel["series"]} == costs


@pytest.mark.parametrize(
    ("p", "se", "n", "low", "high"),
    [
        # Wilson's interval of 8 out of 10, as tabulated; all right is not certain.
        (0.8, math.sqrt(0.8 * 0.2 / 10), 10, 0.4902, 0.9433),
        (1.0, 0.0, 100, 0.9630, 1.0),
        # A larger error is a wider interval.
        (0.9, 0.03, 1000, 0.8256, 0.9448),
        (0.9, 0.01, 1000, 0.8787, 0.9179),
    ],
)
def test_intervals_of_proportions(p, se, n, low, high):
    assert intervals.of_proportion(p, se, n) == pytest.approx((low, high), abs=1e-4)


def test_an_unknown_error_leaves_the_mean():
    assert intervals.around(3.0, math.nan) == (3.0, 3.0)
    assert intervals.around(3.0, 1.0)[1] == pytest.approx(4.96, abs=1e-3)


def test_curves_are_thinned_by_means(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    path.parent.mkdir()
    rows = [{"step": k, "loss": float(k), "late": None if k < 900 else 1.0} for k in range(1000)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run,) = curves.read_curves(curves.find([str(tmp_path / "r*")]))
    assert run["name"] == "run"
    assert len(run["steps"]) == len(run["metrics"]["loss"]) == 334
    assert run["metrics"]["loss"][:2] == [1.0, 4.0]
    assert (run["metrics"]["late"][0], run["metrics"]["late"][-1]) == (None, 1.0)


def test_curves_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        curves.find([str(tmp_path)])
    path = tmp_path / "a.jsonl"
    path.write_text('{"step": 1}\n{"loss": 1}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2"):
        curves.read_curves([path])


def test_a_trace_holds_every_step_of_its_row():
    odds = np.stack([np.full((2, 4), 0.25), np.full((2, 4), 0.75)])
    found = one_trace(probability=odds, stop_ids=(9,), score=1.0)
    steps = found.pop("steps")
    expected = {"nfe": 2, "step_map": [0, 0, 1, 1], "pieces": ["<7>", "<8>", "<9>", "<6>"]}
    expected |= {"ended": 2, "blocks": [0, 2], "confidence": [0.9877] * 4}
    assert {name: found[name] for name in expected} == expected
    assert list(base64.b64decode(steps["confidence"])) == [128] * 4 + [255] * 4
    assert list(base64.b64decode(steps["probability"])) == [64] * 4 + [191] * 4
    # The second step repeats only what changed, of what was still open.
    assert steps["vocabulary"] == ["<7>", "<8>", "∎", "<6>"]
    assert steps["candidates"] == [[0, 0, 1, 1, 2, 2, 3, 2], [3, 3]]


def test_a_trace_tells_what_stood_where_a_policy_edits():
    edited = trajectory()
    action = edited.records.action
    edit = np.zeros_like(action.fill)
    edit[1, 1, 0] = True
    records = edited.records.replace(action=action.replace(edit=edit))
    found = one_trace(edited.replace(records=records))
    assert found["steps"]["rewritten"] == {"0": [[0, "<7>", 0.5], [1, "<1>", 1.0]]}


def test_without_records_a_trace_has_no_steps():
    found = one_trace(trajectory().replace(records=None))
    assert (found["steps"], found["blocks"]) == (None, [0, 2])
