from __future__ import annotations

import json

import pytest
from ml_collections import ConfigDict, config_dict

from jax_unmask.runtime import config as checks
from jax_unmask.runtime.config import ConfigError


def defaults() -> ConfigDict:
    return ConfigDict(
        {
            "steps": 100,
            "seed": config_dict.placeholder(int),
            "note": None,
            "optimizer": {"learning_rate": 3e-4, "betas": (0.9, 0.99)},
            "rollout": {"gen_length": 64, "block_length": 16, "greedy": True},
            "model": {"path": "model"},
        }
    )


def changed(key: str, value: object) -> ConfigDict:
    """The defaults with one key changed, past ml_collections' own checks."""
    config = defaults()
    *groups, name = key.split(".")
    inner = config
    for group in groups:
        inner = inner[group]
    with inner.ignore_type():
        inner[name] = value
    return config


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("steps", 5),
        ("seed", None),
        ("seed", 3),
        ("note", "anything"),
        ("note", 4),
        ("optimizer.learning_rate", 1),
        ("optimizer.betas", [0.8, 1]),
        ("rollout.greedy", False),
    ],
)
def test_validate_accepts(key, value):
    checks.validate(changed(key, value), defaults())


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("stps", 5, ["config.stps = 5", "no such key", "Did you mean 'steps'?"]),
        ("rollout.gen_lenght", 5, ["config.rollout.gen_lenght", "Did you mean 'gen_length'?"]),
        ("rollout.zzz", 5, ["config.rollout.zzz", "block_length, gen_length, greedy"]),
        ("steps", 1.5, ["config.steps = 1.5", "float", "int is needed", "default is 100"]),
        ("steps", True, ["config.steps = True", "bool", "int is needed"]),
        ("steps", None, ["config.steps = None", "needs a value"]),
        ("seed", "a", ["config.seed = 'a'", "int is needed"]),
        ("rollout.greedy", 1, ["config.rollout.greedy = 1", "bool is needed"]),
        ("optimizer.betas", (0.9, "b"), ["config.optimizer.betas[1] = 'b'", "float is needed"]),
        ("optimizer.learning_rate", "3e-4", ["'3e-4'", "float is needed"]),
        ("note", object, ["config.note", "cannot be recorded"]),
        ("rollout", 3, ["config.rollout = 3", "a group of keys"]),
        ("steps", ConfigDict({"a": 1}), ["config.steps", "a single value"]),
    ],
)
def test_validate_names_key_value_and_remedy(key, value, words):
    with pytest.raises(ConfigError) as caught:
        checks.validate(changed(key, value), defaults())
    for word in words:
        assert word in str(caught.value)


def test_validate_reports_a_missing_key():
    config = defaults()
    del config.rollout["greedy"]
    with pytest.raises(ConfigError, match=r"config\.rollout\.greedy.*missing.*True"):
        checks.validate(config, defaults())


def test_flatten_and_json_are_sorted_and_round_trip():
    flat = checks.flatten(defaults())
    assert list(flat) == sorted(flat)
    assert flat["optimizer.betas"] == (0.9, 0.99)
    assert json.loads(checks.config_json(defaults())) == flat | {"optimizer.betas": [0.9, 0.99]}


def test_fingerprint_changes_with_values_but_not_with_order_or_exempt_keys():
    base = checks.fingerprint(defaults())
    reordered = ConfigDict(dict(reversed(list(defaults().to_dict().items()))))
    assert checks.fingerprint(reordered) == base
    other = changed("steps", 101)
    assert checks.fingerprint(other) != base
    assert checks.fingerprint(other, exempt=["steps"]) == checks.fingerprint(
        defaults(), exempt=["steps"]
    )


def test_claim_workdir_accepts_the_same_config_and_exempt_changes(tmp_path):
    checks.claim_workdir(tmp_path, defaults())
    checks.claim_workdir(tmp_path, defaults())
    checks.claim_workdir(tmp_path, changed("note", "new"), exempt=["note"])
    assert json.loads((tmp_path / "config.json").read_text())["note"] == "new"


def test_claim_workdir_names_what_differs_and_keeps_the_record(tmp_path):
    checks.claim_workdir(tmp_path, defaults())
    before = (tmp_path / "config.json").read_text()
    other = changed("optimizer.learning_rate", 1e-3)
    with pytest.raises(ConfigError) as caught:
        checks.claim_workdir(tmp_path, other, exempt=["note"])
    message = str(caught.value)
    assert "optimizer.learning_rate (0.0003 there, 0.001 here)" in message
    assert str(tmp_path) in message
    assert "another --workdir" in message
    assert "steps" not in message
    assert (tmp_path / "config.json").read_text() == before


@pytest.mark.parametrize(
    ("check", "key", "value", "words"),
    [
        (lambda c: checks.positive(c, "steps"), "steps", 0, ["config.steps = 0", "positive"]),
        (lambda c: checks.non_negative(c, "steps"), "steps", -1, ["config.steps = -1", "0 or"]),
        (
            lambda c: checks.within(c, "optimizer.learning_rate", 0, 1),
            "optimizer.learning_rate",
            2.0,
            ["config.optimizer.learning_rate = 2.0", "between 0 and 1"],
        ),
        (
            lambda c: checks.within(c, "optimizer.learning_rate", 0, 1),
            "optimizer.learning_rate",
            float("nan"),
            ["nan"],
        ),
        (
            lambda c: checks.one_of(c, "note", ("bernoulli", "dpls")),
            "note",
            "bernouli",
            ["config.note = 'bernouli'", "'bernoulli', 'dpls'", "did you mean 'bernoulli'?"],
        ),
        (
            lambda c: checks.divides(c, "rollout.block_length", "rollout.gen_length"),
            "rollout.block_length",
            24,
            ["config.rollout.block_length = 24", "config.rollout.gen_length = 64", "48 or 72"],
        ),
        (
            lambda c: checks.at_most(c, "rollout.block_length", "rollout.gen_length"),
            "rollout.block_length",
            65,
            ["config.rollout.block_length = 65", "config.rollout.gen_length = 64"],
        ),
        (
            lambda c: checks.existing_path(c, "model.path"),
            "model.path",
            "no/such/place",
            ["config.model.path = 'no/such/place'", "no such file or directory"],
        ),
    ],
)
def test_value_checks(check, key, value, words):
    with pytest.raises(ConfigError) as caught:
        check(changed(key, value))
    for word in words:
        assert word in str(caught.value)


def test_value_checks_pass_good_values(tmp_path):
    config = changed("model.path", str(tmp_path))
    checks.positive(config, "steps", "rollout.gen_length")
    checks.non_negative(config, "steps")
    checks.within(config, "optimizer.learning_rate", 0, 1)
    checks.one_of(config, "rollout.block_length", (16, 32))
    checks.divides(config, "rollout.block_length", "rollout.gen_length")
    checks.at_most(config, "rollout.block_length", "rollout.gen_length")
    checks.existing_path(config, "model.path")
