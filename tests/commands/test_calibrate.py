"""`python -m jax_unmask.calibrate`: from prompts to a request for forwards."""

import pathlib

import jax
import pytest

from jax_unmask import policies
from jax_unmask.commands import calibrate
from jax_unmask.policies import LearnedPolicy, NetworkConfig
from jax_unmask.policies.calibration import FILE, load_calibrations

NETWORK = NetworkConfig(
    hidden_dim=8, feedforward_dim=8, time_embed_dim=8, alphas=(0.1, 10.0), initial_bias=0.0
)


def save(directory: pathlib.Path, network: NetworkConfig) -> str:
    policy = LearnedPolicy(network=network, distribution="bernoulli_argmax")
    policies.save_policy(directory, policy, jax.jit(policy.init_params)(jax.random.key(0)))
    return str(directory)


@pytest.mark.thorough
def test_counts_forwards_on_prompts_alone(tiny_config, tmp_path, monkeypatch):
    config = tiny_config("policy_grpo", eval__batch_size=4)
    where = save(tmp_path / "told", NETWORK)
    monkeypatch.setattr(
        "jax_unmask.tasks.sudoku.Sudoku.check", lambda *_: pytest.fail("an answer was checked")
    )
    found = calibrate.calibrate(config, where, points=3, prompts=6)
    assert found.name == "sudoku-16-16"
    assert found.prompts == 6
    assert list(found.alphas) == sorted(found.alphas)
    assert {0.1, 10.0} <= set(found.alphas)
    assert list(found.scales) == sorted(found.scales)
    # Scaled, it fills about one position per step, or all at one time.
    assert found.nfe[0] > 14
    assert found.nfe[-1] == 1
    assert load_calibrations(where) == {found.name: found}
    # The same rows in batches of another size.
    config.eval.batch_size = 6
    assert calibrate.calibrate(config, where, points=3, prompts=6).nfe == found.nfe
    assert len(calibrate.table(found).splitlines()) == len(found.alphas) + 1
    last = calibrate.verdict(found, str(where))[-1]
    assert last.startswith("Next: jax-unmask generate --model=")
    assert f"--policy=learned:{where},nfe=" in last
    in_blocks = calibrate.calibrate(config, where, points=2, prompts=4, block_length=4)
    assert list(load_calibrations(where)) == ["sudoku-16-16", in_blocks.name]


@pytest.mark.parametrize(
    ("settings", "named"), [({"block_length": 3}, "block_length = 3"), ({"name": "a/b"}, "a/b")]
)
def test_mistakes_come_before_the_weights(tiny_config, tmp_path, settings, named):
    where = save(tmp_path / "told", NETWORK)
    config = tiny_config("policy_grpo", model__path=str(tmp_path / "missing"))
    with pytest.raises(ValueError, match=named):
        calibrate.calibrate(config, where, **settings)


def test_settings_that_only_training_uses_are_not_looked_at(tiny_config, tmp_path):
    """An expert, which the whole canvas needs: blocks could not be calibrated beside it."""
    where, missing = save(tmp_path / "told", NETWORK), str(tmp_path / "missing")
    config = tiny_config("policy_grpo", model__path=missing, expert__count=1)
    config.rollout.update(gen_length=16, block_length=4)
    with pytest.raises(ValueError, match=missing):
        calibrate.calibrate(config, where)


def test_a_policy_of_one_alpha(tiny_config, tmp_path):
    where = save(tmp_path / "one", NetworkConfig())
    with pytest.raises(ValueError, match=r"one.*one alpha"):
        calibrate.calibrate(tiny_config("policy_grpo"), where)
    assert not (tmp_path / "one" / FILE).exists()


def test_calibrations_that_ship_are_replaced_by_name_alone(tiny_config, tmp_path):
    """The file of all users; a task of one's own on the same canvas has another name."""
    config = tiny_config("policy_grpo", model__path=str(tmp_path / "missing"))
    before = load_calibrations(policies.policy_directory("universal"))
    with pytest.raises(ValueError, match=r"name = None.*sudoku-16-16.*--name") as error:
        calibrate.calibrate(config, "universal")
    assert "missing" not in str(error.value)
    for settings in ({"name": "sudoku-16-16"}, {"block_length": 2}):
        with pytest.raises(ValueError, match="missing"):  # It goes on to the denoiser.
            calibrate.calibrate(config, "universal", **settings)
    assert load_calibrations(policies.policy_directory("universal")) == before
