"""`python -m jax_unmask.eval`."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

import tiny
from jax_unmask import policies, recipes
from jax_unmask.commands import eval as eval_command
from jax_unmask.evaluation import axes
from jax_unmask.recipes.policy_grpo import build_policy
from jax_unmask.runtime.checkpoints import CheckpointError, Checkpoints
from jax_unmask.settings import ConfigError

CONFIG = """
from jax_unmask import recipes


def get_config():
    config = recipes.config("policy_grpo")
    config.task.update(name="sudoku", prompt_length=17, truncate_prompts=False)
    config.model.update(path={model!r}, dtype="float32", param_dtype="float32")
    config.rollout.update(gen_length=16, block_length=16)
    config.policy.network.update(hidden_dim=8, feedforward_dim=8, time_embed_dim=8)
    config.eval.update(num_problems=4, batch_size=4, block_lengths=(16,))
    config.eval.policies = ("threshold:threshold=0.5|0.9",)
    return config
"""


@pytest.fixture
def config(tiny_model_dir):
    space = {}
    exec(CONFIG.format(model=str(tiny_model_dir)), space)
    return space["get_config"]()


def save_policy(config, directory, step=0):
    policy = build_policy(recipes.read(config), tiny.denoiser_config())
    policies.save_policy(directory, policy, policy.init_params(jax.random.key(step)))
    return directory


def save_checkpoints(config, workdir, rewards):
    policy = build_policy(recipes.read(config), tiny.denoiser_config())
    with Checkpoints(workdir, keep_latest=2, keep_best=1, best_metric="reward") as checkpoints:
        for step, reward in enumerate(rewards, start=1):
            params = policy.init_params(jax.random.key(step))
            state = {"step": jnp.asarray(step)}
            checkpoints.save(step, params=params, state=state, metrics={"reward": reward})


def test_as_a_command(tiny_model_dir, config, tmp_path):
    path = tmp_path / "experiment.py"
    path.write_text(CONFIG.format(model=str(tiny_model_dir)))
    policy = save_policy(config, tmp_path / "policy")
    workdir = tmp_path / "out"
    result = subprocess.run(
        [
            *(sys.executable, "-m", "jax_unmask.eval", f"--config={path}"),
            *(f"--workdir={workdir}", f"--checkpoint={policy}"),
            *("--config.eval.num_problems=3", "--config.eval.examples=1"),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        timeout=500,
    )
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in (workdir / "results.jsonl").read_text().splitlines()]
    assert [(row["label"], row["n"]) for row in rows] == [
        ("heuristic", 3),
        ("heuristic", 3),
        ("trained here", 3),
    ]
    assert "trained here" in result.stdout
    assert (workdir / "frontier.png").exists()
    assert (workdir / "summary.md").exists()
    assert "<!doctype html>" in (workdir / "report.html").read_text()


def test_a_wrong_config_is_refused_before_anything_runs(config, tmp_path):
    config.eval.block_lengths = (5,)
    with pytest.raises(ConfigError, match=r"config\.eval\.block_lengths"):
        eval_command.evaluate(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


class TestPolicyDirectory:
    def test_a_policy_directory_is_taken_as_it_is(self, config, tmp_path):
        directory = save_policy(config, tmp_path / "policy")
        assert eval_command.policy_directory(recipes.read(config), directory, tmp_path) == directory

    @pytest.mark.parametrize(
        ("metric", "place", "step"),
        [("", "", 3), ("reward", "", 1), ("reward", "checkpoints/2", 2)],
    )
    def test_exports_a_training_checkpoint(self, config, tmp_path, metric, place, step):
        run = tmp_path / "run"
        save_checkpoints(config, run, [0.9, 0.1, 0.2])
        config.checkpoint.best_metric = metric
        settings = recipes.read(config)
        directory = eval_command.policy_directory(settings, run / place, tmp_path / "out")
        policy, params = policies.load_policy(directory)
        assert policy == build_policy(settings, tiny.denoiser_config())
        expected = policy.init_params(jax.random.key(step))
        assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), params, expected))

    def test_says_what_is_wrong(self, config, tmp_path):
        with pytest.raises(FileNotFoundError, match="missing is not a directory"):
            eval_command.policy_directory(recipes.read(config), tmp_path / "missing", tmp_path)
        with pytest.raises(CheckpointError, match="expected the workdir of a training run"):
            eval_command.policy_directory(recipes.read(config), tmp_path, tmp_path)
        save_checkpoints(config, tmp_path / "run", [0.5])
        config.policy.network.hidden_dim = 16
        with pytest.raises(CheckpointError, match="shape"):
            eval_command.policy_directory(recipes.read(config), tmp_path / "run", tmp_path)


def test_validates_before_the_model_is_loaded(config, tmp_path):
    config.model.path = "/no/such/model"
    config.eval.policies = ("nonsense",)
    with pytest.raises(ConfigError, match="nonsense"):
        eval_command.evaluate(config, tmp_path)


def test_the_default_grid_can_be_read():
    from jax_unmask.evaluation.candidates import candidates

    found = candidates(recipes.defaults("policy_grpo"))
    assert len({candidate.method for candidate in found}) == 7
    assert all(candidate.label == "heuristic" for candidate in found)


class TestAxes:
    def test_every_combination_is_measured_once_into_one_report(self, config, tmp_path):
        config.eval.update(num_problems=2, examples=0, block_lengths=(0,))
        config.rollout.block_length = 8
        config.eval.policies = ("threshold:threshold=0.5",)
        config.eval.axes = ("rollout.gen_length=8|16", f"model.path={config.model.path}")
        found = eval_command.evaluate(config, tmp_path)
        assert [(r.gen_length, r.block_length) for r in found] == [(8, 8), (16, 16)]
        lines = (tmp_path / "results.jsonl").read_text().splitlines()
        assert [json.loads(line)["axes"] for line in lines] == [
            {"rollout.gen_length": 8},
            {"rollout.gen_length": 16},
        ]
        text = (tmp_path / "report.html").read_text()
        data = json.loads(text.partition('id="data">')[2].partition("</script>")[0])
        titles = [section["title"].rpartition(", ")[2] for section in data["sections"]]
        assert titles == ["gen_length 8", "gen_length 16"]
        assert (tmp_path / "frontier-2.png").exists()
        eval_command.evaluate(config, tmp_path)
        assert (tmp_path / "results.jsonl").read_text().splitlines() == lines

    def test_alternatives_may_change_several_keys(self, config):
        config.eval.axes = (
            "rollout.gen_length=8|16",
            "task.name=sudoku,task.prompt_length=17|task.name=arithmetic,task.prompt_length=20",
        )
        found = [each.values for each in axes.combinations(config)]
        assert [list(values.values()) for values in found] == [
            [8, "sudoku", 17],
            [8, "arithmetic", 20],
            [16, "sudoku", 17],
            [16, "arithmetic", 20],
        ]
        assert axes.combinations(config)[1].config.task.name == "arithmetic"
        assert config.task.name == "sudoku"

    @pytest.mark.parametrize(
        ("lines", "message"),
        [
            (("rollout.gen_lenght=8",), "'rollout.gen_lenght'.* rollout.gen_length"),
            (("rollout.gen_length=eight",), "rollout.gen_length=eight"),
            (("rollout.gen_length=8|",), "empty value"),
            (("recipe=sft",), "'recipe'"),
            (("seed=1", "seed=2"), "seed is in two axes"),
            (("seed=1|task.path=x",), "does not set seed"),
        ],
    )
    def test_says_what_is_wrong_before_anything_is_loaded(self, config, tmp_path, lines, message):
        config.model.path = "/no/such/model"
        config.eval.axes = lines
        with pytest.raises(ConfigError, match=message):
            eval_command.evaluate(config, tmp_path)
