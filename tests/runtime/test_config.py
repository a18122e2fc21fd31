import json

import pytest
from ml_collections import ConfigDict, config_dict

from jax_unmask.runtime import config as checks
from jax_unmask.settings import ConfigError


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


def test_a_run_may_go_on_for_more_steps_and_its_result_start_another(tmp_path):
    config = ConfigDict({"train": {"steps": 5}, "policy": {"init_from": None}})
    checks.claim_workdir(tmp_path, config)
    config.train.steps = 9
    checks.claim_workdir(tmp_path, config)
    config.train.steps = 7
    (tmp_path / "policy").mkdir()
    with pytest.raises(ConfigError, match=r"train\.steps \(9 there, 7 here\)") as caught:
        checks.claim_workdir(tmp_path, config)
    assert f"config.policy.init_from={tmp_path}/policy" in str(caught.value)
    assert "higher train.steps" in str(caught.value)


@pytest.mark.parametrize(
    ("record", "named"), [(None, "no config.json"), ("{", "is damaged"), ("[]", "is damaged")]
)
def test_a_workdir_whose_record_is_lost(tmp_path, record, named):
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    if record is not None:
        (tmp_path / "config.json").write_text(record)
    with pytest.raises(ConfigError, match=rf"{named}.*config\.json"):
        checks.claim_workdir(tmp_path, defaults())
