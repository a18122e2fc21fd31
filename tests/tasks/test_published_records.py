"""Golden records of the published parsers, equivalence and rewards."""

import json
import math
import pathlib

import numpy as np
import pytest

from jax_unmask.tasks import rewards
from jax_unmask.tasks.checkers import latex, published
from jax_unmask.tasks.gsm8k import Gsm8k
from jax_unmask.tasks.math import Math

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures" / "rewards"
PARSERS = json.loads((FIXTURES / "parsers.json").read_text())
RECORDS = [json.loads(line) for line in (FIXTURES / "rewards.jsonl").read_text().splitlines()]
TASKS = {
    "gsm8k": Gsm8k("unused", reference_compat=True),
    "math": Math("unused", reference_compat=True),
}


def outcome(function, *args, **kwargs):
    """The result in the records' form; the class of an error is not part of our contract."""
    try:
        value = function(*args, **kwargs)
    except ValueError:
        return "error"
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def expected(record):
    return "error" if "error" in record else record["value"]


def correctness(kind, completion, answer):
    """Correctness of a response, with the gold as the records state it."""
    if kind == "gsm8k":
        return TASKS[kind].check({"answer": f"#### {answer}"}, completion)
    return TASKS[kind].check({"solution": answer}, completion)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("extract_gsm_answer", published.gsm8k_answer),
        ("extract_math_answer", published.math_answer_for_evaluation),
        ("reward_extract_answer_math", published.math_answer),
        ("last_boxed_only_string", published.last_boxed_only_string),
    ],
)
def test_extraction(name, function):
    assert len(PARSERS["texts"]) == 73
    for record in PARSERS["texts"]:
        assert outcome(function, record["text"]) == expected(record[name]), record["text"]


def test_normal_forms():
    assert len(PARSERS["strings"]) == 67
    for record in PARSERS["strings"]:
        text = record["text"]
        form = outcome(latex.normalise, text, reference_compat=True)
        assert form == expected(record["strip_string"]), text
        assert outcome(published.remove_boxed, text) == expected(record["remove_boxed"]), text


def test_equivalence():
    # Answers are texts here; two of the 94 records compare one with a number.
    pairs = [each for each in PARSERS["equivalence"] if float not in map(type, each.values())]
    assert len(pairs) == 92
    for record in pairs:
        same = latex.is_equiv(record["a"], record["b"], reference_compat=True)
        assert same == expected(record["is_equiv"]), record


def test_by_default_missing_answers_differ():
    assert latex.is_equiv(None, None, reference_compat=True)
    assert latex.is_equiv("", "", reference_compat=True)
    assert not latex.is_equiv(None, None)
    assert not latex.is_equiv("", "")
    assert not latex.is_equiv(" ", " ")


def test_by_default_one_rule_that_fails_spoils_no_other():
    assert latex.is_equiv("\\dfrac{a}{b}/c", "\\frac{a}{b} / c")
    assert not latex.is_equiv("\\dfrac{a}{b}/c", "\\frac{a}{b} / c", reference_compat=True)


def test_right_answers_of_gsm8k():
    for record in PARSERS["gsm8k_gold"]:
        text = record["text"]
        training = expected(record["train_extract_hash_answer"]) or ""
        right = outcome(lambda gold=training: float(gold.replace(",", "")))
        assert outcome(published.gsm8k_gold, text) == right, text
        assert published.gsm8k_gold_for_evaluation(text) == expected(
            record["eval_extract_answer_gsm8k"]
        )


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record["completion"][:30])
def test_rewards(record):
    right = correctness(record["dataset_type"], record["completion"], record["answer"])
    score = record["pos_reward"] * right
    assert score == expected(record["correctness_only"])
    cost = (record["steps"], record["L"], record["alpha"])
    np.testing.assert_allclose(
        rewards.multiplicative(score, *cost), expected(record["multiplicative"]), rtol=1e-15
    )
    # The reference computes this one in float32.
    charged = rewards.additive(
        np.float32(score), np.float32(record["steps"]), record["L"], record["alpha"]
    )
    assert charged == np.float32(expected(record["additive"]))


def test_rewards_of_a_mixed_batch():
    batch = PARSERS["mixed_batch"]
    right = [
        correctness(kind, completion, answer)
        for kind, completion, answer in zip(
            batch["dataset_type"], batch["completions"], batch["answers"], strict=True
        )
    ]
    cost = (np.array(batch["steps"]), batch["L"], batch["alpha"])
    np.testing.assert_allclose(
        rewards.multiplicative(np.array(right), *cost), batch["multiplicative"], rtol=1e-7
    )
    np.testing.assert_allclose(
        rewards.additive(np.array(right), *cost), batch["additive"], rtol=1e-7
    )
