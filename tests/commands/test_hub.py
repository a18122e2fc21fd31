"""Sharing by hub name, against a stand-in of the hub on this machine."""

import json
import shutil

import pytest

import fake_hub
import tiny
from jax_unmask import denoisers, policies
from jax_unmask.commands import hub
from jax_unmask.shipped import assets

SHIPPED = assets() / "policies" / "sudoku-seed0"


def test_a_policy_goes_there_and_comes_back_by_name(tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(SHIPPED, run / "policy")
    card = run / "policy" / "README.md"
    card.write_text(card.read_text().replace(f"learned:{SHIPPED.name}", "learned:."))
    with fake_hub.running(monkeypatch, tmp_path / "cache") as files:
        hub.main(["push", str(run), "--name=me/fast"])
        assert set(files["me/fast"]) == {path.name for path in SHIPPED.iterdir()}
        text = files["me/fast"]["README.md"].decode()
        # It runs as it stands.
        assert "python -m jax_unmask.generate --policy=learned:me/fast\n" in text
        header = dict(line.split(": ", 1) for line in text.split("---\n")[1].splitlines())
        assert json.loads(header["pipeline_tag"]) == "text-generation"
        policy, params = policies.parse_policy("learned:me/fast")
        hub.main(["pull", "me/fast", f"--output={tmp_path / 'there'}"])
    assert policy.distribution == "threshold"
    assert (tmp_path / "there" / "README.md").is_file()
    there, _ = policies.load_policy(tmp_path / "there")
    assert there.network == policy.network
    assert params["network"].keys() == policies.load_policy(SHIPPED)[1]["network"].keys()


def test_a_denoiser_goes_there_and_is_loaded_by_name(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    tiny.save_byte_model(tmp_path / "model")
    with fake_hub.running(monkeypatch, tmp_path / "cache") as files:
        hub.main(["push", str(tmp_path / "model"), "--name=me/tiny"])
        assert {"config.json", "tokenizer_config.json", "README.md"} <= set(files["me/tiny"])
        assert "--model=me/tiny" in files["me/tiny"]["README.md"].decode()
        denoiser, _ = denoisers.from_pretrained("me/tiny")
    assert denoiser.config.family == "llada"


def test_what_cannot_be_shared_says_so(tmp_path, monkeypatch):
    with fake_hub.running(monkeypatch, tmp_path / "cache"):
        for arguments, problem in (
            (("push", str(tmp_path), "--name=me/x"), "holds no policy"),
            (("push", str(SHIPPED), "--name=x"), "write OWNER/NAME"),
            (("pull", "me/nothing", f"--output={tmp_path}/x"), "could not be downloaded"),
        ):
            with pytest.raises(SystemExit, match=problem):
                hub.main(arguments)
    with pytest.raises(FileNotFoundError, match="shipped policies"):
        policies.policy_directory("nothing")
