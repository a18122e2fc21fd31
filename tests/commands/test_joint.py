"""Recipe `joint`, through the command: a policy and its denoiser learn from the same rollouts."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from jax_unmask import policies, settings
from jax_unmask.commands import train
from jax_unmask.commands.eval import evaluate
from jax_unmask.recipes import joint


def metrics_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.thorough
def test_a_policy_and_its_denoiser_learn_from_the_same_rollouts(
    tiny_config, tiny_model_dir, tmp_path
):
    config = tiny_config("joint", train__steps=2, turn=1, checkpoint__every=1)
    train.train(config, tmp_path / "turns")
    first, second = metrics_of(tmp_path / "turns")
    assert "pairs" in first and "states/denoiser" not in first
    assert "pairs" not in second and second["states/denoiser"] > 0
    # A run that was killed after the policy's turn goes on with the denoiser's.
    shutil.copytree(tmp_path / "turns", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "2")
    train.train(config, tmp_path / "resumed")
    assert len(metrics_of(tmp_path / "resumed")) == 2
    for name in ("policy", "model"):
        exported = [tmp_path / run / name / "model.safetensors" for run in ("turns", "resumed")]
        assert exported[0].read_bytes() == exported[1].read_bytes()

    together = tiny_config("joint", train__steps=1)
    train.train(together, tmp_path / "both")
    (line,) = metrics_of(tmp_path / "both")
    assert {"step", *joint.Joint.metrics} >= set(line)
    assert line["pairs"] == first["pairs"] > 0  # The first rollouts are the same.
    assert line["states/denoiser"] > 0
    trained = load_file(tmp_path / "both" / "model" / "model.safetensors")
    before = load_file(tiny_model_dir / "model.safetensors")
    assert any(not np.array_equal(trained[name], before[name]) for name in before)
    policy, _ = policies.load_policy(tmp_path / "both" / "policy")
    assert policy.alphas == (0.1, 30.0)
    assert str(tmp_path / "both" / "model") in (tmp_path / "both/policy/README.md").read_text()

    # An evaluation measures that policy on that denoiser.
    together.eval.update(policies=(), shipped=(), num_problems=4, validation_problems=0, seeds=(0,))
    together.eval.update(trained=("distribution=threshold,alpha=1.0",), block_lengths=(16,))
    (measured,) = evaluate(together, tmp_path / "measured", tmp_path / "both")
    assert measured.label == "trained here"


@dataclasses.dataclass(frozen=True)
class TakesBack(policies.NetworkConfig):
    """A network of one's own that sees filled tokens, as those that take some back do."""

    @property
    def needs(self):
        return dataclasses.replace(super().needs, filled=True)


def test_a_network_of_ones_own_that_takes_tokens_back_is_refused_before_weights_are_loaded(
    tiny_config, tiny_model_dir, tmp_path
):
    model = tmp_path / "without_weights"
    shutil.copytree(tiny_model_dir, model, ignore=shutil.ignore_patterns("*.safetensors"))
    config = tiny_config("joint", train__steps=1)
    config.model.path = str(model)
    config.policy.network.kind = f"{__name__}.TakesBack"
    with pytest.raises(settings.ConfigError, match=r"policy\.network\.kind.*TakesBack"):
        train.train(config, tmp_path / "run")


def test_schedules_count_the_steps_in_which_a_side_learns(tiny_config):
    config = settings.from_config(
        joint.JointSettings(), tiny_config("joint", train__steps=7, turn=2)
    )
    assert (config.of_policy.train.steps, config.of_denoiser.train.steps) == (4, 3)
    assert config.of_denoiser.optimizer_steps == 3 * config.denoiser.learner.minibatches
    together = dataclasses.replace(config, turn=0)
    assert together.of_policy.train.steps == together.of_denoiser.train.steps == 7
