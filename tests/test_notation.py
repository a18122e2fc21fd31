"""The notation of policies, caches, tasks and sweeps, and the tables of names."""

import dataclasses
import json
import pathlib
from typing import Any, Literal

import pytest

from jax_unmask import notation, tasks
from jax_unmask.notation import NotationError, Spec, alternatives, assignments, convert, expand
from jax_unmask.policies import parse_policy
from jax_unmask.rollout import parse_cache

GOLDEN = json.loads((pathlib.Path(__file__).parent / "fixtures" / "notation.json").read_text())


@pytest.mark.parametrize("text", GOLDEN)
def test_texts_of_configs_documents_and_records_mean_what_they_meant(text):
    expected = GOLDEN[text]
    if expected is None or any(row.get("policy", "") is None for row in expected):
        with pytest.raises(NotationError):
            [parse_policy(spec.text) for spec in expand(text)]
        return
    specs = expand(text)
    for spec, row in zip(specs, expected, strict=True):
        assert (spec.text, list(spec.block_lengths)) == (row["text"], row["blocks"])
        if spec.name != "learned":
            policy, params = parse_policy(spec.text)
            assert type(policy).__name__ == row["policy"]
            assert dataclasses.asdict(policy) == row["fields"]
            assert {key: float(value) for key, value in params.items()} == row["params"]


def test_settings_multiply_and_the_last_varies_fastest():
    texts = [spec.text for spec in expand("quota:a=1|2,b=x|y")]
    assert texts == ["quota:a=1,b=x", "quota:a=1,b=y", "quota:a=2,b=x", "quota:a=2,b=y"]


def test_ranges_hold_both_ends_without_rounding_errors():
    assert alternatives("0.1..0.4/0.1|0.95") == ["0.1", "0.2", "0.3", "0.4", "0.95"]
    assert alternatives("1..4/2") == ["1", "3"]


def test_a_target_may_hold_what_else_has_a_meaning():
    (spec,) = expand("learned:a@b..c,temperature=1@16|32")
    assert spec == Spec("learned", "a@b..c", (("temperature", "1"),), (16, 32))
    assert notation.parse("learned:gs://bucket/policy").target == "gs://bucket/policy"


@pytest.mark.parametrize(
    "text",
    [
        ":threshold=1",
        "threshold:a,threshold=1,b",
        "threshold:threshold=",
        "threshold:threshold=0.5||0.9",
        "threshold:threshold=1,threshold=2",
        "t:t=1..0/0.1",
        "t:t=0..1/0",
        "t:t=0..1/0.0001",
        "t:t=0..1.1.1/0.1",
    ],
)
def test_mistakes_are_one_kind_of_error_that_holds_the_text(text):
    with pytest.raises(NotationError) as error:
        expand(text)
    assert repr(text) in str(error.value)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("rollout.gen_length=256|512", [{"rollout.gen_length": x} for x in ("256", "512")]),
        ("seed=1..3/1", [{"seed": x} for x in "123"]),
        (
            "task.name=gsm8k,task.path=/a|task.name=math,task.path=/b",
            [{"task.name": "gsm8k", "task.path": "/a"}, {"task.name": "math", "task.path": "/b"}],
        ),
        (
            "rollout.cache=dual:refresh_every=8|none",
            [{"rollout.cache": "dual:refresh_every=8"}, {"rollout.cache": "none"}],
        ),
        ("a=1|b=2", None),
        ("a=1,b=2|a=3", None),
        ("a", None),
        ("a=", None),
    ],
)
def test_axes(line, expected):
    if expected is None:
        with pytest.raises(NotationError):
            assignments(line)
    else:
        assert assignments(line) == expected


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("True", bool, True),
        ("1", bool, ValueError),
        ("3", int, 3),
        ("3.5", int, ValueError),
        ("3", float, 3.0),
        ("3", str, "3"),
        ("none", int | None, None),
        ("x", int | None, ValueError),
        ("x", str | pathlib.Path | None, "x"),
        ("4", Literal[4, "x"], 4),
        ("y", Literal[4, "x"], ValueError),
        ("(1, 2)", tuple, (1, 2)),
        ("level:3..5", Any, "level:3..5"),
    ],
)
def test_values_have_the_declared_type(text, kind, expected):
    if expected is ValueError:
        with pytest.raises(ValueError, match=r"must|not"):
            convert(text, kind)
    else:
        value = convert(text, kind)
        assert value == expected
        assert type(value) is type(expected)


def test_caches():
    for text in ("prefix", "dual:refresh_every=8,extra_tokens=16", "block:refresh_rows=2"):
        assert str(parse_cache(text)) == text
    assert parse_cache("none") is None


def test_tasks():
    samples = pathlib.Path(__file__).parent / "fixtures" / "samples"
    task = tasks.parse(f"math:{samples / 'math'},equivalence=symbolic")
    assert len(task.source("test"))
    assert tasks.parse("math", str(samples / "math")).name == "math"
    competition = f"aime24:{samples / 'competitions'},reference_compat=true"
    assert tasks.parse(competition).reference_compat is True
    for text in ("sudoku_puzzles", "sudoku:min_hole=3", "sudoku:min_holes=x", "sodoku"):
        with pytest.raises(ValueError, match=text.partition(":")[0]):
            tasks.parse(text)


NAMES = notation.Names("task", {"sudoku": "sudoku.Sudoku"}, package="jax_unmask.tasks")


def test_names_are_aliases_of_import_paths():
    made = NAMES("sudoku")
    assert NAMES("jax_unmask.tasks.sudoku.Sudoku") is made
    assert (NAMES.name_of(made), NAMES.name_of(Spec)) == ("sudoku", "jax_unmask.notation.Spec")
    assert list(NAMES) == ["sudoku"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sodoku", ("did you mean sudoku", "package.module.Name")),
        ("zzz", ("known: sudoku",)),
        ("jax_unmask.tasks.sudoku.Sodoku", ("did you mean Sudoku",)),
        ("nowhere_at_all.Task", ("No module named 'nowhere_at_all'",)),
        ("broken_module.Task", ("ZeroDivisionError", "broken_module")),
    ],
)
def test_unknown_names_say_what_there_is(name, words, tmp_path, monkeypatch):
    (tmp_path / "broken_module.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(NotationError) as error:
        NAMES(name)
    for word in (name, *words):
        assert word in str(error.value)
