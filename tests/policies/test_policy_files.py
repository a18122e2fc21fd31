"""Policies on disk: the reference's files, round trips, and files that do not fit."""

import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tiny
from jax_unmask import policies
from jax_unmask.shipped import assets

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures" / "policy"
RICH = policies.LearnedPolicy(
    network=policies.NetworkConfig(
        hidden_dim=8,
        feedforward_dim=12,
        time_embed_dim=4,
        hidden_size=6,
        initial_bias=-1.0,
        **tiny.RICH_NETWORK | {"position_embedding": 7, "pair_attention": 6},
    ),
    distribution="dpls",
    context="block",
    dpls_stop_logit=0.5,
)


def copy(name: str, directory: pathlib.Path) -> pathlib.Path:
    target = directory / name
    shutil.copytree(FIXTURES / name, target)
    return target


def edit_config(directory: pathlib.Path, **changes: object) -> None:
    path = directory / "policy_config.json"
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in fields.items() if value is not None}))


def assert_equal_trees(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_reference_policies_act_as_the_reference_evaluates_them():
    policy, params = policies.load_policy(FIXTURES / "dit_confidence_topp")
    assert policy.distribution == "bernoulli_argmax"
    assert policy.context == "full"
    assert policy.network == policies.NetworkConfig(
        hidden_dim=48, feedforward_dim=112, time_embed_dim=20, top_k=3, time_period=1
    )
    assert params["temperature"] == params["scale"] == 1


@pytest.mark.parametrize("name", ["dit_confidence", "dit_confidence_topp", "dit_hidden"])
def test_export_repeats_the_reference_file(tmp_path, name: str):
    """Same names, shapes and values, the saved rotary buffer included."""
    policies.save_policy(tmp_path, *policies.load_policy(FIXTURES / name))
    ours = load_file(tmp_path / "model.safetensors")
    theirs = load_file(FIXTURES / name / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        tolerance = 1e-6 if key.endswith("inv_freq") else 0
        np.testing.assert_allclose(ours[key], value, rtol=tolerance, err_msg=key)
    fields = json.loads((tmp_path / "policy_config.json").read_text())
    original = json.loads((FIXTURES / name / "policy_config.json").read_text())
    original.pop("llada_config", None)
    assert original.items() <= fields.items()


def test_round_trip_keeps_everything(tmp_path):
    params = RICH.init_params(jax.random.key(0))
    params |= {"temperature": jnp.float32(0.5), "scale": jnp.float32(2.0)}
    policies.save_policy(tmp_path / "a", RICH, params)
    policy, loaded = policies.load_policy(tmp_path / "a")
    assert policy == RICH
    assert hash(policy) == hash(RICH)
    assert_equal_trees(loaded, params)


def test_settings_per_row_are_not_saved(tmp_path):
    _, params = policies.load_policy(FIXTURES / "dit_confidence")
    params["scale"] = jnp.ones(3)
    with pytest.raises(ValueError, match=r"scale .*\(3,\)"):
        policies.save_policy(tmp_path, policies.LearnedPolicy(), params)


def test_tensors_that_do_not_fit_are_all_listed(tmp_path):
    directory = copy("dit_confidence", tmp_path)
    path = directory / "model.safetensors"
    tensors = load_file(path)
    del tensors["base_policy.final_norm.bias"]
    tensors["base_policy.output_proj.weight"] = np.zeros((2, 48), np.float32)
    tensors["base_policy.mystery"] = np.zeros(1, np.float32)
    tensors["base_policy.transformer_blocks.0.inv_freq"] *= 2
    path.chmod(0o644)
    save_file(tensors, path)
    with pytest.raises(ValueError, match=path.name) as error:
        policies.load_policy(directory)
    for part in (
        "missing: base_policy.final_norm.bias",
        "unexpected: base_policy.mystery",
        "shape of base_policy.output_proj.weight: (2, 48), expected (1, 48)",
        "values of base_policy.transformer_blocks.0.inv_freq",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy_type": "mlp"}, "policy_type='mlp'"),
        ({"num_heads": None, "num_blocks": None}, "lacks num_heads, num_blocks"),
        ({"num_heads": 5}, "hidden_dim = 48"),
        ({"policy_type": "dit_hidden"}, "llada_config=None"),
        ({"num_blocks": 2.5}, r"policy_config\.json: num_blocks = 2.5: .* float"),
        ({"time_period": "x"}, r"policy_config\.json: time_period = 'x'"),
        ({"jax_unmask": {"distribution": None}}, r"policy_config\.json: distribution = None"),
        ({"jax_unmask": {"temperature": [1]}}, r"temperature = \[1\]: .*number"),
    ],
)
def test_configs_that_are_not_understood(tmp_path, changes, message):
    directory = copy("dit_confidence", tmp_path)
    edit_config(directory, **changes)
    with pytest.raises(ValueError, match=message):
        policies.load_policy(directory)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("policy_config.json", b"[1]", "policy_config.json holds a JSON list"),
        ("policy_config.json", b'{"a": ' + b"[" * 100_000, "policy_config.json"),
        ("policy_config.json", None, "policy_config.json is not .*colour"),
        ("model.safetensors", b"cut", "model.safetensors is not "),
    ],
)
def test_damaged_directories(tmp_path, file, content, message):
    shutil.copytree(next((assets() / "policies").iterdir()), tmp_path / "policy")
    path = tmp_path / "policy" / file
    if content is None:
        content = json.dumps(json.loads(path.read_text()) | {"jax_unmask": {"colour": 1}}).encode()
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        policies.load_policy(tmp_path / "policy")


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"policy_config\.json"):
        policies.load_policy(tmp_path)
    (tmp_path / "policy_config.json").write_text("{")
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        policies.load_policy(tmp_path)
    shutil.copy(FIXTURES / "dit_confidence" / "model.safetensors", tmp_path)
    with pytest.raises(ValueError, match="not valid JSON"):
        policies.load_policy(tmp_path)


def test_what_a_policy_was_made_for_is_kept_and_obeyed(tmp_path):
    """`learned:` takes the run's workdir too, and acts as the file says."""
    made = policies.checkpoint.MadeFor("sudoku", "sudoku", 16, 4, "threshold")
    policy = policies.LearnedPolicy(network=policies.NetworkConfig(hidden_dim=8, num_heads=1))
    params = policy.init_params(jax.random.key(0))
    for places in ((made, dataclasses.replace(made, model="countdown")), (made,)):
        policies.save_policy(tmp_path / "policy", policy, params, places)
        assert policies.checkpoint.made_for(tmp_path / "policy") == places
    assert policies.load_policy(tmp_path / "policy")[0] == policy
    for name in (tmp_path, tmp_path / "policy"):
        assert policies.parse_policy(f"learned:{name}")[0].distribution == "threshold"
    text = f"learned:{tmp_path},distribution=bernoulli"
    assert policies.parse_policy(text)[0].distribution == "bernoulli"
    assert policies.checkpoint.made_for(FIXTURES / "dit_confidence") == ()
