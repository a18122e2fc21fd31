"""Sweeps: what is measured, what is skipped, what is written."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_unmask import policies, recipes
from jax_unmask.environment import bundle as bundle_lib
from jax_unmask.evaluation import candidates, sweep
from jax_unmask.evaluation.problems import load_problems
from jax_unmask.policies.calibration import Calibration, save_calibration
from jax_unmask.report import results
from jax_unmask.settings import ConfigError

KEYS = {
    *("task", "denoiser", "policy", "settings", "method", "label", "seed", "split"),
    *("block_length", "gen_length", "n", "accuracy", "accuracy_se", "nfe_mean", "nfe_se"),
    *("seconds_per_sequence", "tokens_per_second", "useful_forward_fraction", "still_masked"),
}


class Short:
    """Seven problems, each of 17 tokens."""

    name = "short"

    def source(self, split, *, seed):
        return [{"prompt": "1234" * 4 + "="}] * 7

    def prompt(self, example):
        return example["prompt"]


def read(workdir):
    return [json.loads(line) for line in (workdir / "results.jsonl").read_text().splitlines()]


def save_policy(directory, key=0, **network):
    shape = {"hidden_dim": 8, "feedforward_dim": 8, "num_heads": 2, "time_embed_dim": 8}
    policy = policies.LearnedPolicy(policies.NetworkConfig(**shape, **network))
    policies.save_policy(directory, policy, policy.init_params(jax.random.key(key)))
    return directory


def test_writes_rows_and_reports(config, bundle, tmp_path, capsys):
    found = sweep.run(recipes.read(config), bundle, tmp_path)
    rows = read(tmp_path)
    assert all(row.keys() >= KEYS for row in rows)
    # Rules that draw nothing are measured under one seed, others under each.
    assert [(row["policy"], row["seed"]) for row in rows] == [
        ("threshold:threshold=0.3", 0),
        ("threshold:threshold=0.9", 0),
        ("random:tokens_per_step=4", 0),
        ("random:tokens_per_step=4", 1),
    ]
    assert [result.sampling_seeds for result in found] == [1, 1, 2]
    assert rows[0]["settings"] == {"threshold": 0.3}
    assert {row["label"] for row in rows} == {"heuristic"}
    assert {row["n"] for row in rows} == {10}
    assert (tmp_path / "frontier.png").read_bytes()[1:4] == b"PNG"
    assert "| threshold=0.9 |" in (tmp_path / "summary.md").read_text()
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) <= 5
    assert ": the best is " in shown[0]
    assert "report.html" in shown[-1]
    assert (tmp_path / "summary.md").read_text().startswith(f"- {shown[0]}")
    # Of the random policy's two seeds, one at least.
    outcomes = [np.load(tmp_path / row["outcomes"])["correct"] >= 1 for row in rows[2:]]
    assert found[2].pass_at == np.mean(outcomes[0] | outcomes[1])
    assert "| pass@2 % |" in (tmp_path / "summary.md").read_text()


def test_continues_after_a_torn_line(config, bundle, tmp_path, monkeypatch, caplog):
    sweep.run(recipes.read(config), bundle, tmp_path)
    path = tmp_path / "results.jsonl"
    before = path.read_bytes()
    path.write_bytes(before[: before.rstrip().rfind(b"\n") + 40])
    calls = []
    measure = sweep.measure_one

    def counting(*args):
        calls.append(args[3].seed)
        return measure(*args)

    monkeypatch.setattr(sweep, "measure_one", counting)
    sweep.run(recipes.read(config), bundle, tmp_path)
    assert calls == [1]
    with caplog.at_level("INFO"):
        sweep.run(recipes.read(config), bundle, tmp_path)
    assert calls == [1]
    assert "4 of 4 are measured" in caplog.text
    timed = ("seconds_per_sequence", "tokens_per_second", "compile_seconds")
    untimed = [
        [
            {k: v for k, v in json.loads(line).items() if k not in timed}
            for line in text.splitlines()
        ]
        for text in (before, path.read_bytes())
    ]
    assert untimed[0] == untimed[1]
    sweep.run(recipes.read(config), bundle, tmp_path)
    assert len(calls) == 1


@pytest.mark.thorough
def test_a_policy_that_was_trained_on_is_measured_again(config, bundle, tmp_path):
    config.eval.update(policies=(), num_problems=2, seeds=(0,))
    config.reward.alpha = 3.0
    directory = save_policy(tmp_path / "policy")
    sweep.run(recipes.read(config), bundle, tmp_path, trained=directory)
    save_policy(directory, key=1)
    found = sweep.run(recipes.read(config), bundle, tmp_path, trained=directory)
    assert len(read(tmp_path)) == 2
    # The report knows only the policy that is there now.
    assert [(r.label, r.point.method) for r in found] == [("trained here", "policy, alpha 3")]


@pytest.mark.thorough
def test_validation_serves_heuristics_alone(config, bundle, tmp_path):
    config.eval.update(policies=("threshold:threshold=0.5",), seeds=(0,))
    config.eval.update(num_problems=4, validation_problems=3)
    directory = save_policy(tmp_path / "policy")
    found = sweep.run(recipes.read(config), bundle, tmp_path / "out", trained=directory)
    assert [(row["split"], row["label"], row["n"]) for row in read(tmp_path / "out")] == [
        ("test", "heuristic", 4),
        ("validation", "heuristic", 3),
        ("test", "trained here", 4),
    ]
    (standing,) = results.standings(found, "test")
    assert standing.chosen_on == "validation"
    assert "chosen on validation" in (tmp_path / "out" / "summary.md").read_text()


class TestCandidates:
    def test_training_runs_share_a_method(self, config, tmp_path):
        for seed in (1, 2):
            save_policy(tmp_path / f"alpha3-seed{seed}", seed)
        config.eval.policies = tuple(
            f"learned:{tmp_path}/alpha3-seed{seed},temperature=0.5" for seed in (1, 2)
        )
        found = candidates.candidates(recipes.read(config))
        assert [(c.method, c.training_seed, c.label) for c in found] == [
            ("alpha3", 1, "learned"),
            ("alpha3", 2, "learned"),
        ]
        assert found[0].params["temperature"] == jnp.float32(0.5)

    def test_policies_are_named_by_their_run_and_never_alike(self, config, tmp_path):
        """Two trainings that both lie in a folder `policy` are no seeds of one method."""
        for name in ("fast/policy", "careful/policy", "other/fast", "fast-seed0"):
            save_policy(tmp_path / name)

        def methods(*names):
            config.eval.policies = tuple(f"learned:{tmp_path}/{name}" for name in names)
            return [c.method for c in candidates.candidates(recipes.read(config))]

        assert methods("fast", "careful/policy") == ["fast", "careful"]
        assert methods("fast", "fast/policy,temperature=2") == ["fast", "fast"]
        for other in ("other/fast", "fast-seed0"):
            with pytest.raises(ConfigError, match=f"config.eval.policies = '.*{other}.* fast"):
                methods("fast", other)

    def test_shipped_policies_by_pattern(self, config, tmp_path, monkeypatch):
        monkeypatch.setattr("jax_unmask.shipped.assets", lambda: tmp_path)
        for name in ("sudoku-a-seed0", "sudoku-b-seed0", "arithmetic-a-seed0"):
            save_policy(tmp_path / "policies" / name)
        config.eval.update(policies=(), block_lengths=(16, 4), trained=("temperature=0.5|1",))
        config.eval.shipped = ("sudoku-*@16",)
        found = candidates.candidates(recipes.read(config))
        assert [(c.method, c.settings["temperature"], c.block_lengths) for c in found] == [
            ("sudoku-a", 0.5, (16,)),
            ("sudoku-a", 1.0, (16,)),
            ("sudoku-b", 0.5, (16,)),
            ("sudoku-b", 1.0, (16,)),
        ]
        assert {c.label for c in found} == {"shipped"}

    def test_a_request_for_forwards_is_another_alpha_in_other_blocks(self, config, tmp_path):
        directory = save_policy(tmp_path / "policy", alphas=(0.1, 10.0))
        for block, forwards in ((16, (8.0, 2.0)), (4, (12.0, 6.0))):
            place = {"denoiser": config.model.path, "gen_length": 16, "block_length": block}
            place |= {"cache": "none", "task": "sudoku", "distribution": "threshold"}
            table = Calibration(f"in_{block}", place, (0.1, 10.0), (1.0, 1.0), forwards, 9)
            save_calibration(directory, table)
        config.eval.update(policies=(f"learned:{directory},nfe=6",), block_lengths=(16, 4))
        found = candidates.candidates(recipes.read(config))
        assert [each.block_lengths for each in found] == [(16,), (4,)]
        assert found[0].params["alpha"] < 1 < found[1].params["alpha"]

    def test_deterministic_modes_draw_nothing(self, config, tmp_path):
        directory = save_policy(tmp_path / "policy")
        config.eval.update(policies=(), trained=("temperature=1", "distribution=threshold"))
        assert [
            c.draws for c in candidates.candidates(recipes.read(config), trained=directory)
        ] == [True, False]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"policies": ("treshold:threshold=1",)}, "mean threshold"),
            ({"policies": ("threshold:threshold=2",)}, "threshold"),
            ({"policies": ("learned:missing/policy",)}, "missing/policy"),
            (
                {"policies": ("threshold:threshold=0.5@5",)},
                r"config\.eval\.policies = \(5,\).* 16\b",
            ),
            ({"block_lengths": (16, 3)}, r"config\.eval\.block_lengths = \(16, 3\).* 3 .* 16\b"),
            ({"seeds": ()}, r"config\.eval\.seeds = \(\)"),
            ({"shipped": ("nothing-*",)}, r"config\.eval\.shipped = 'nothing-\*'"),
        ],
    )
    def test_says_what_is_wrong(self, config, changes, message):
        config.eval.update(changes)
        with pytest.raises(ConfigError, match=message):
            candidates.candidates(recipes.read(config))


class TestBundle:
    def test_names_shipped_models_where_there_is_none(self, config):
        config.model.path = ""
        with pytest.raises(ConfigError, match=r"config\.model\.path = ''"):
            bundle_lib.load_bundle(recipes.read(config))

    def test_missing_directory(self, config):
        config.model.path = "/no/such/model"
        with pytest.raises(ConfigError, match=r"config\.model\.path = ./no/such/model"):
            bundle_lib.load_bundle(recipes.read(config))

    def test_unknown_task(self, config):
        config.task.name = "sodoku"
        with pytest.raises(ConfigError, match="sodoku"):
            bundle_lib.load_bundle(recipes.read(config))

    def test_data_of_a_task_that_reads_files(self, config):
        config.task.name = "sudoku_puzzles"
        with pytest.raises(ConfigError, match=r"config\.task\.path"):
            bundle_lib.load_task(recipes.read(config))

    def test_too_few_problems(self, config, bundle):
        with pytest.raises(ConfigError, match=r"num_problems = 10: .* test .* 7 problems"):
            load_problems(recipes.read(config), bundle, Short(), "test")

    def test_all_problems_and_whole_prompts_unless_told_otherwise(self, config, bundle, caplog):
        config.eval.num_problems, config.task.prompt_length = 0, 5
        problems = load_problems(recipes.read(config), bundle, Short(), "test")
        whole = problems.prompts
        assert whole.tokens.shape == (7, 24) and (whole.mask.sum(axis=1) == 17).all()
        assert problems.buckets == (5, 10, 20)
        config.eval.truncate_prompts = True
        cut = load_problems(recipes.read(config), bundle, Short(), "test").prompts
        assert cut.tokens.shape == (7, 5)
        assert re.search(r"7 of 7 prompts .* 5 tokens \(up to 17\)", caplog.text)
        config.eval.update(truncate_prompts=False, num_problems=1)
        config.rollout.update(gen_length=48, block_length=48)  # Of 64 positions.
        cut = load_problems(recipes.read(config), bundle, Short(), "test").prompts
        assert cut.tokens.shape == (1, 16)
        assert re.search(r"1 of 1 prompts .* 16 tokens", caplog.text)


@pytest.mark.thorough
def test_caches_are_methods_of_their_own(config, bundle, tmp_path):
    config.eval.update(policies=("top_confidence:tokens_per_step=1",), seeds=(0,))
    config.eval.update(block_lengths=(4,), caches=("none", "dual"))
    found = sweep.run(recipes.read(config), bundle, tmp_path)
    plain, dual = read(tmp_path)
    assert (plain["cache"], dual["cache"]) == ("none", "dual")
    assert plain["key"] != dual["key"]
    assert plain["nfe_mean"] == dual["nfe_mean"] == plain["cost_mean"] == 16
    assert dual["cost_mean"] == pytest.approx(4 + 12 * 4 / 33)
    assert dual["useful_forward_fraction"] <= 1
    assert [result.point.method for result in found] == [
        "top_confidence",
        "top_confidence, dual cache",
    ]
    assert (tmp_path / "frontier_cost.png").exists()
    assert "cost" in (tmp_path / "summary.md").read_text()
    # The row without a cache is what it was before there were caches.
    config.eval.caches = ()
    assert (
        sweep.run(recipes.read(config), bundle, tmp_path)[0].point.accuracy
        == found[0].point.accuracy
    )
    assert len(read(tmp_path)) == 2


def test_a_cache_must_fit_the_denoiser(config, bundle, tmp_path):
    config.eval.caches = ("block",)
    with pytest.raises(ConfigError, match=r"config\.eval\.caches = 'block'.*full attention"):
        sweep.run(recipes.read(config), bundle, tmp_path)
