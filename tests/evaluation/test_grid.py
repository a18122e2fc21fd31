"""The notation for many settings."""

from __future__ import annotations

import pytest

from jax_unmask.evaluation.grid import PolicySpec, expand


def texts(text):
    return [spec.text for spec in expand(text)]


def test_one_setting_stays_as_it_is():
    assert expand("threshold:threshold=0.9") == [
        PolicySpec("threshold", settings=(("threshold", "0.9"),))
    ]


def test_a_name_alone():
    assert texts("threshold") == ["threshold"]


def test_alternatives_multiply():
    assert texts("quota:a=1|2,b=x|y") == [
        "quota:a=1,b=x",
        "quota:a=1,b=y",
        "quota:a=2,b=x",
        "quota:a=2,b=y",
    ]


def test_ranges_hold_both_ends_without_rounding_errors():
    assert texts("t:t=0.1..0.4/0.1|0.95") == [
        "t:t=0.1",
        "t:t=0.2",
        "t:t=0.3",
        "t:t=0.4",
        "t:t=0.95",
    ]
    assert texts("t:t=1..4/2") == ["t:t=1", "t:t=3"]


def test_learned_policies_have_a_target():
    (one, two) = expand("learned:runs/a..b,temperature=0.5|1")
    assert (one.target, one.settings) == ("runs/a..b", (("temperature", "0.5"),))
    assert two.text == "learned:runs/a..b,temperature=1"


def test_block_lengths_at_the_end():
    (spec,) = expand("learned:a@b,temperature=1@16|32")
    assert (spec.target, spec.block_lengths) == ("a@b", (16, 32))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (":threshold=1", "has no name"),
        ("threshold:0.9", "'0.9' is not of the form setting=value"),
        ("threshold:threshold=", "is not of the form setting=value"),
        ("threshold:threshold=0.5||0.9", "empty value"),
        ("t:t=1..0/0.1", "must rise"),
        ("t:t=0..1/0", "must rise"),
        ("t:t=0..1/0.0001", "at most 1000"),
        ("t:t=0..1.1.1/0.1", "is not a range"),
    ],
)
def test_says_what_is_wrong(text, message):
    with pytest.raises(ValueError, match=message):
        expand(text)
