"""Which policies and problems the report shows, and that they are what was measured."""

import json

import jax
import numpy as np
import pytest

from jax_unmask import policies, recipes
from jax_unmask.evaluation import candidates, sweep, viewing
from jax_unmask.evaluation.problems import Measured, Problems

NETWORK = policies.NetworkConfig(hidden_dim=8, feedforward_dim=8, num_heads=2, time_embed_dim=8)


def data_of(workdir):
    text = (workdir / "report.html").read_text(encoding="utf-8")
    return json.loads(text.partition('id="data">')[2].partition("</script>")[0])


@pytest.mark.thorough
def test_the_report_shows_what_was_measured(config, bundle, tmp_path, caplog):
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5}\n')
    config.eval.update(examples=2, seeds=(0,), num_problems=4, curves=(str(run),))
    config.eval.policies = ("threshold:threshold=0.3|0.9",)
    policy = policies.LearnedPolicy(NETWORK)
    policies.save_policy(tmp_path / "policy", policy, policy.init_params(jax.random.key(0)))
    out = tmp_path / "out"
    with caplog.at_level("INFO"):
        found = sweep.run(recipes.read(config), bundle, out, trained=tmp_path / "policy")
    assert "trajectories" in caplog.text
    data = data_of(out)
    assert [curve["name"] for curve in data["curves"]] == ["run"]
    about = dict(data["about"])
    assert about["run"] == "out" and about["command"] and len(about.get("commit", "0" * 40)) >= 40
    assert "eval.num_problems = 4" in data["config"].splitlines()
    points = [p for s in data["sections"][0]["panels"][0]["series"] for p in s["points"]]
    assert len(points) == len(found) == 3
    assert len(data["problems"]) == 2
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    for problem in data["problems"]:
        index = int(problem["name"].split()[-1]) - 1
        learned, *others = problem["traces"]
        assert learned["label"] == "trained here"
        assert learned["steps"]["probability"]
        assert [trace["method"] for trace in others] == ["threshold"]
        for trace in problem["traces"]:
            # The same problem drew the same numbers when it was measured.
            (nfe, correct), *_ = [
                (outcome["nfe"][index], outcome["correct"][index])
                for row in rows
                if row["method"] == trace["method"]
                and (not row["settings"] or _same(row["settings"], trace["settings"]))
                for outcome in [np.load(out / row["outcomes"])]
            ]
            assert (trace["nfe"], trace["score"]) == (nfe, correct)


def test_the_policy_that_was_just_trained_is_shown_first(config, tmp_path):
    """Also where shipped ones are more accurate and faster."""
    config.eval.examples = 1

    def row(label, accuracy, nfe):
        candidate = candidates.Candidate(
            "eval.policies", "", f"{label} {accuracy}", label, {}, None, {}, (16,)
        )
        item = Measured(candidate, Problems("test", [], None), 16, config.eval.seeds[0], None)
        return item, {"accuracy": accuracy, "nfe_mean": nfe}

    measured = [row("shipped", 0.9, 3), row("shipped", 0.8, 2), row("trained here", 0.5, 4)]
    chosen = viewing.chosen(recipes.read(config), [*measured, row("heuristic", 0.4, 4)], tmp_path)
    assert [s.candidate.label for s in chosen] == ["trained here", "shipped", "heuristic"]


def _same(settings, text):
    return ", ".join(f"{name}={value:.4g}" for name, value in settings.items()) == text


def test_picks_problems_that_tell_policies_apart():
    one = np.array([1.0, 0.0, 1.0, 0.0, 1.0, 1.0])
    two = np.array([1.0, 0.0, 0.0, 0.0, 1.0, 0.0])
    assert viewing.pick_problems([one, two], 6, 3) == [2, 1, 0]
    assert viewing.pick_problems([one, two], 6, 6) == [2, 5, 1, 3, 0, 4]
    assert viewing.pick_problems([one, None], 6, 4) == [1, 3, 0, 2]
    assert viewing.pick_problems([None], 6, 2) == [0, 1]


def test_named_policies_are_shown_in_that_order(config):
    config.eval.update(examples=1, viewer=("random@4", "threshold:threshold=0.5"))
    shown = viewing._named(recipes.read(config), 16)
    assert [(s.candidate.method, s.block_length) for s in shown] == [
        ("random", 4),
        ("threshold", 16),
    ]
