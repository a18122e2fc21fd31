"""Requests for forwards: calibrations of policies that can be told alpha."""

import dataclasses
import json

import jax
import pytest

from jax_unmask import policies
from jax_unmask.policies import LearnedPolicy, NetworkConfig
from jax_unmask.policies.calibration import FILE, Calibration, load_calibrations, save_calibration

POLICY = LearnedPolicy(
    network=NetworkConfig(hidden_dim=8, feedforward_dim=8, time_embed_dim=8, alphas=(0.1, 10.0))
)
ENVIRONMENT = {
    "denoiser": "sudoku",
    "gen_length": 16,
    "block_length": 8,
    "distribution": "threshold",
}
ALPHAS = (0.1, 1.0, 10.0)
TABLE = Calibration("sudoku-16-16", ENVIRONMENT, ALPHAS, (1.0,) * 3, (8.0, 4.0, 2.0), 9)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("policies") / "told"
    policies.save_policy(directory, POLICY, jax.jit(POLICY.init_params)(jax.random.key(0)))
    return directory


@pytest.fixture
def directory(saved):
    (saved / FILE).unlink(missing_ok=True)
    save_calibration(saved, TABLE)
    return saved


def test_fewer_forwards_are_a_larger_alpha():
    assert TABLE.settings(4.0) == pytest.approx({"alpha": 1.0, "scale": 1.0})
    alphas = [TABLE.settings(nfe)["alpha"] for nfe in (8.0, 6.0, 4.0, 2.5, 2.0)]
    assert alphas == sorted(alphas)
    assert alphas[0] == pytest.approx(0.1)
    assert alphas[-1] == pytest.approx(10.0)
    # Noise in the table does not turn the order around.
    noisy = dataclasses.replace(TABLE, nfe=(4.0, 4.1, 2.0))
    noisy_alphas = [noisy.settings(nfe)["alpha"] for nfe in (4.0, 3.0, 2.0)]
    assert noisy_alphas == sorted(noisy_alphas)


def test_beyond_its_alphas_probabilities_are_scaled(directory):
    alphas, scales = (0.1, 0.1, 1.0, 10.0, 10.0), (0.25, 1.0, 1.0, 1.0, 4.0)
    save_calibration(
        directory,
        dataclasses.replace(TABLE, alphas=alphas, scales=scales, nfe=(16.0, 8.0, 4.0, 2.0, 1.0)),
    )
    for nfe, alpha, scale in (
        (16, 0.1, 0.25),
        (4, 1.0, 1.0),
        (2**0.5, 10.0, 0.5 + 1.75**0.5),
        (1, 10.0, 4.0),
    ):
        _, params = policies.parse_policy(f"learned:{directory},nfe={nfe}")
        assert params["alpha"] == pytest.approx(alpha)
        assert params["scale"] == pytest.approx(scale)


@pytest.mark.parametrize("nfe", [1.9, 8.1, float("nan"), -3])
def test_forwards_that_it_cannot_take(directory, nfe):
    with pytest.raises(ValueError, match=r"nfe.*2 to 8"):
        policies.parse_policy(f"learned:{directory},nfe={nfe}")


def test_a_request_by_the_only_calibration_or_a_named_one(directory):
    policy, params = policies.parse_policy(f"learned:{directory},nfe=4,temperature=0.5")
    assert policy.distribution == "threshold"  # As it acted when its forwards were counted.
    assert params["alpha"] == pytest.approx(1.0)
    assert params["temperature"] == 0.5
    save_calibration(directory, dataclasses.replace(TABLE, name="other", nfe=(9.0, 6.0, 4.0)))
    _, params = policies.parse_policy(f"learned:{directory},nfe=4,calibration=other")
    assert params["alpha"] == pytest.approx(10.0)
    with pytest.raises(ValueError, match="sudoku-16-16, other"):
        policies.parse_policy(f"learned:{directory},nfe=4")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ("nfe=4,alpha=1", "alpha .*nfe"),
        ("nfe=4,calibration=nowhere", "nowhere"),
        ("calibration=sudoku-16-16", "calibration"),
        ("nfee=4", "nfe"),
    ],
)
def test_requests_that_make_no_sense(directory, settings, named):
    with pytest.raises(ValueError, match=named):
        policies.parse_policy(f"learned:{directory},{settings}")


def test_forwards_are_those_of_the_calibrated_canvas_and_blocks(directory):
    def ask(settings: str, length: int, block: int):
        canvas = {"gen_length": length, "block_length": block}
        return policies.parse_policy(f"learned:{directory},{settings}", environment=canvas)

    ask("nfe=4", 16, 8)
    ask("alpha=1", 16, 4)
    for name in ("", ",calibration=sudoku-16-16"):
        with pytest.raises(ValueError, match=r"sudoku-16-16.*block_length 8 instead of 4"):
            ask(f"nfe=4{name}", 16, 4)
        with pytest.raises(ValueError, match=r"sudoku-16-16.*gen_length 16 instead of 32"):
            ask(f"nfe=4{name}", 32, 8)


def test_forwards_are_those_of_the_calibrated_denoiser_unless_it_is_named(directory):
    """One file serves several denoisers: each request finds the numbers of its own."""
    other = {**ENVIRONMENT, "denoiser": "countdown"}
    save_calibration(
        directory, dataclasses.replace(TABLE, name="other", environment=other, nfe=(9.0, 6.0, 4.0))
    )

    def alpha(settings: str, denoiser: str) -> float:
        place = {**ENVIRONMENT, "denoiser": denoiser}
        _, params = policies.parse_policy(f"learned:{directory},{settings}", environment=place)
        return float(params["alpha"])

    assert alpha("nfe=4", "sudoku") == pytest.approx(1.0)
    assert alpha("nfe=4", "countdown") == pytest.approx(10.0)
    assert alpha("nfe=4,calibration=other", "sudoku") == pytest.approx(10.0)
    with pytest.raises(ValueError, match=r"nfe.*denoiser sudoku .*llada"):
        alpha("nfe=4", "llada")


def test_only_calibrations_that_help_are_listed_and_the_command_that_makes_one(directory):
    """Of word problems there is none, and a table of another denoiser and canvas fits nothing."""
    place = {"denoiser": "word_problems", "gen_length": 128, "block_length": 32, "cache": "none"}
    for settings in ("nfe=12", "nfe=12,calibration=nowhere"):
        with pytest.raises(ValueError, match="calibration") as error:
            policies.parse_policy(f"learned:{directory},{settings}", environment=place)
        said = str(error.value)
        assert "sudoku-16-16" not in said
        assert "--config=tiny_policy.py:word_problems" in said
        assert f"--policy={directory}" in said
        assert "--config.rollout.gen_length=128 --block_length=32" in said
    with pytest.raises(ValueError, match="--policy=universal"):
        policies.parse_policy("learned:universal,nfe=12", environment=place)


def test_without_calibration(saved):
    (saved / FILE).unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r"jax_unmask\.calibrate"):
        policies.parse_policy(f"learned:{saved},nfe=4")


def test_a_new_calibration_replaces_one_of_its_name(directory):
    save_calibration(directory, dataclasses.replace(TABLE, nfe=(7.0, 4.0, 2.0)))
    assert load_calibrations(directory)["sudoku-16-16"].nfe[0] == 7.0


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[1]",
        json.dumps([{"name": "a"}]),
        json.dumps([dataclasses.asdict(dataclasses.replace(TABLE, alphas=(1.0, 1.0, 2.0)))]),
        json.dumps([dataclasses.asdict(dataclasses.replace(TABLE, nfe=(3.0, 0.0, 2.0)))]),
        json.dumps([dataclasses.asdict(dataclasses.replace(TABLE, nfe=(3.0, 2.0)))]),
    ],
)
def test_a_damaged_file_is_named(directory, content):
    (directory / FILE).write_text(content)
    with pytest.raises(ValueError, match=FILE):
        policies.parse_policy(f"learned:{directory},nfe=4")


def test_one_alpha_only(tmp_path):
    policy = LearnedPolicy(network=dataclasses.replace(POLICY.network, alphas=()))
    policies.save_policy(tmp_path, policy, jax.jit(policy.init_params)(jax.random.key(0)))
    save_calibration(tmp_path, TABLE)
    with pytest.raises(ValueError, match="nfe = 4"):
        policies.parse_policy(f"learned:{tmp_path},nfe=4")


def test_another_policy_in_the_directory_has_no_calibrations(directory):
    policies.save_policy(directory, *policies.load_policy(directory))
    assert not load_calibrations(directory)
