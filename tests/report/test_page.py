"""The report page: its data, its escaping, and that it needs nothing but itself."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from jax_unmask.policies.base import Action, Observation
from jax_unmask.report import curves, frontier, intervals, page, payload, results, traces
from jax_unmask.rollout import Prompts, Trajectory
from jax_unmask.rollout.trajectory import Records

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> <!-- & \"' \u2028 \ud800"
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


def row(label, method, correct, nfe, **settings):
    correct = np.asarray(correct, float)
    place = {"label": label, "method": method, "split": "test", "block_length": 4, "seed": 0}
    found = {"accuracy": correct.mean(), "accuracy_se": frontier.standard_error(correct)}
    found |= {"nfe_mean": float(nfe), "nfe_se": 0.1, "seconds_per_sequence": 0.01}
    found |= {"tokens_per_second": 100.0, "still_masked": 0.0, "correct": correct}
    return place | found | {"settings": settings, "gen_length": 16, "n": len(correct)}


def measured(*rows):
    return results.collect(rows, lambda row: (row["correct"], np.full(row["n"], row["nfe_mean"])))


def trajectory():
    """Two rows of four positions: the second takes two steps, in blocks of two."""
    masked = np.array([[[1, 1, 1, 1], [1, 1, 1, 1]], [[0, 0, 0, 0], [0, 0, 1, 1]]], bool)
    obs = Observation(
        candidate=np.array([[[5, 5, 5, 5], [7, 8, 9, 9]], [[5, 5, 5, 5], [1, 1, 9, 6]]]),
        confidence=np.array([np.full((2, 4), 0.5), np.full((2, 4), 1.0)]),
        top_probs=np.zeros((2, 2, 4, 1)),
        masked=masked,
        legal=masked,
        step=np.array([[0, 0], [1, 1]]),
        step_in_block=np.zeros((2, 2), int),
        block_start=np.array([[0, 0], [0, 2]]),
    )
    fill = masked.copy()
    fill[0, 1, 2:] = False
    action = Action(fill=fill, log_prob=np.zeros((2, 2)))
    return Trajectory(
        prompts=Prompts(tokens=np.zeros((2, 1)), mask=np.ones((2, 1))),
        tokens=np.array([[5, 5, 5, 5], [7, 8, 9, 6]]),
        step_map=np.array([[0, 0, 0, 0], [0, 0, 1, 1]]),
        confidence=np.full((2, 4), 0.98765),
        nfe=np.array([1, 2]),
        forwards=np.array(2),
        slots=2,
        records=Records(obs, action, masked.any(-1)),
    )


def pieces(tokens):
    return [f"<{token}>" for token in tokens]


def one_trace(**changes):
    arguments = {"method": "m", "settings": "s=1", "text": "t", "block_length": 2} | changes
    return traces.trace(trajectory(), 1, pieces, **arguments)


def hostile_page():
    names = dict.fromkeys(("method", "settings", "text", "label"), HOSTILE)
    trace = one_trace(**names, score=0.0)
    trace["pieces"] = [HOSTILE] * 4
    return {
        "title": HOSTILE,
        "subtitle": HOSTILE,
        "sections": [
            payload.section(
                measured(row("heuristic", HOSTILE, [1, 0], 4, **{HOSTILE: HOSTILE})),
                "test",
                title=HOSTILE,
            )
        ],
        "curves": [{"name": HOSTILE, "steps": [1, 2], "metrics": {HOSTILE: [1.0, None]}}],
        "problems": [
            traces.problem(HOSTILE, [{"role": "user", "content": HOSTILE}], [trace], target=HOSTILE)
        ],
        "problems_note": HOSTILE,
    }


class TestPage:
    def test_text_stays_text(self):
        data = hostile_page()
        text = page.render(data, text=HOSTILE)
        text.encode("utf-8")  # Has no lone surrogates.
        found = Elements(text)
        assert found.scripts.keys() == {"code", "application/json"}
        # What the page reads is exactly what was put in, and nothing of it is markup.
        assert json.loads(found.scripts["application/json"]) == json.loads(json.dumps(data))
        assert "alert" not in found.scripts["code"]
        assert not re.search("<(img|!--)", text)
        assert found.addresses == []

    def test_is_written_even_if_text_has_no_utf8(self, tmp_path):
        page.write_page(
            tmp_path / "page.html",
            title="t",
            text="plain",
            problems=[traces.problem("p", "\ud800", [one_trace()])],
        )
        found = Elements((tmp_path / "page.html").read_text(encoding="utf-8"))
        data = json.loads(found.scripts["application/json"])
        assert data["problems"][0]["prompt"] == "\ud800"
        assert [path.name for path in tmp_path.iterdir()] == ["page.html"]

    def test_allows_its_own_script_and_style_and_nothing_else(self):
        found = Elements(page.render(hostile_page()))
        rules = dict(
            rule.split(" ", 1) for rule in found.meta["Content-Security-Policy"].split("; ")
        )
        assert rules["default-src"] == "'none'"
        for rule, source in (("script-src", found.scripts["code"]), ("style-src", found.styles[0])):
            digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
            assert rules[rule] == f"'sha256-{digest}'"

    def test_scripts_never_make_markup_of_text_nor_fetch(self):
        for path in WEB.iterdir():
            source = path.read_text(encoding="utf-8")
            assert not re.search(
                r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|Function\(|fetch\(|"
                r"XMLHttp|import\(|@import|url\(|https?://(?!www\.w3\.org/2000/svg)",
                source,
            ), path.name

    def test_what_is_filled_in_is_not_filled_again(self):
        text = page.render({"title": "{{data}} {{script}}", "sections": []}, text="{{style}}")
        assert "<title>{{data}} {{script}}</title>" in text
        assert "<pre>{{style}}</pre>" in text


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
    # 0.25 for budgets from 4 to 8, 0.5 from 8 to 16, of the budgets from 1 to 16.
    assert areas["threshold"] == pytest.approx((0.25 * 4 + 0.5 * 8) / 15)
    json.dumps(found, allow_nan=False)


def test_with_caches_points_have_costs():
    plain = row("heuristic", "threshold", [1, 0], 4)
    cached = row("heuristic", "threshold", [1, 0], 4) | {
        "cache": "prefix",
        "cost_mean": 1.5,
        "cost_se": 0.1,
    }
    panel = payload.section(measured(plain, cached), "test", title="t")["panels"][0]
    assert {one["method"]: one["points"][0]["cost"] for one in panel["series"]} == {
        "threshold": 4.0,
        "threshold, prefix cache": 1.5,
    }
    (one,) = payload.section(measured(plain), "test", title="t")["panels"][0]["series"]
    assert one["points"][0]["cost"] is None


class TestIntervals:
    def test_is_wilsons_for_independent_scores(self):
        # Wilson's interval of 8 out of 10, as tabulated.
        se = math.sqrt(0.8 * 0.2 / 10)
        low, high = intervals.of_proportion(0.8, se, 10)
        assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))

    def test_all_right_is_not_certain(self):
        low, high = intervals.of_proportion(1.0, 0.0, 100)
        assert high == 1.0
        assert low == pytest.approx(0.9630, abs=1e-4)

    def test_a_larger_error_is_a_wider_interval(self):
        narrow, wide = (intervals.of_proportion(0.9, se, 1000) for se in (0.01, 0.03))
        assert wide[0] < narrow[0] < narrow[1] < wide[1] <= 1

    def test_an_unknown_error_leaves_the_mean(self):
        assert intervals.around(3.0, math.nan) == (3.0, 3.0)
        assert intervals.around(3.0, 1.0)[1] == pytest.approx(4.96, abs=1e-3)


class TestCurves:
    def test_are_thinned_by_means(self, tmp_path):
        path = tmp_path / "run" / "metrics.jsonl"
        path.parent.mkdir()
        rows = [
            {"step": k, "loss": float(k), "late": None if k < 900 else 1.0} for k in range(1000)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (run,) = curves.read_curves(curves.find([str(tmp_path / "r*")]))
        assert run["name"] == "run"
        assert len(run["steps"]) == len(run["metrics"]["loss"]) == 334
        assert run["metrics"]["loss"][:2] == [1.0, 4.0]
        assert run["metrics"]["late"][0] is None
        assert run["metrics"]["late"][-1] == 1.0

    def test_say_what_is_wrong(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="names no training metrics"):
            curves.find([str(tmp_path)])
        path = tmp_path / "a.jsonl"
        path.write_text('{"step": 1}\n{"loss": 1}\n')
        with pytest.raises(ValueError, match=r"a\.jsonl, line 2"):
            curves.read_curves([path])


class TestTrace:
    def test_holds_every_step_of_its_row(self):
        odds = np.stack([np.full((2, 4), 0.25), np.full((2, 4), 0.75)])
        found = one_trace(probability=odds, stop_ids=(9,), score=1.0)
        assert found["nfe"] == 2
        assert found["step_map"] == [0, 0, 1, 1]
        assert found["pieces"] == ["<7>", "<8>", "<9>", "<6>"]
        assert found["ended"] == 2
        assert found["blocks"] == [0, 2]
        assert found["confidence"] == [0.9877] * 4
        steps = found["steps"]
        assert list(base64.b64decode(steps["confidence"])) == [128] * 4 + [255] * 4
        assert list(base64.b64decode(steps["probability"])) == [64] * 4 + [191] * 4
        # The second step repeats only what changed, of what was still open.
        assert steps["vocabulary"] == ["<7>", "<8>", "∎", "<6>"]
        assert steps["candidates"] == [[0, 0, 1, 1, 2, 2, 3, 2], [3, 3]]

    def test_tells_what_stood_where_a_policy_edits(self):
        edited = trajectory()
        action = edited.records.action
        edit = np.zeros_like(action.fill)
        edit[1, 1, 0] = True
        records = edited.records.replace(action=action.replace(edit=edit))
        arguments = {"method": "m", "settings": "", "text": "", "block_length": 2}
        found = traces.trace(edited.replace(records=records), 1, pieces, **arguments)
        assert found["steps"]["rewritten"] == {"0": [[0, "<7>", 0.5], [1, "<1>", 1.0]]}

    def test_without_records_there_are_no_steps(self):
        bare = trajectory().replace(records=None)
        found = traces.trace(bare, 0, pieces, method="m", settings="", text="", block_length=2)
        assert found["steps"] is None
        assert found["blocks"] == [0, 2]
