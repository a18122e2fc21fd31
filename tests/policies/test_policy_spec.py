"""Policy strings: what they build, and the errors for those that say nothing sensible."""

import pathlib

import pytest

from jax_unmask.notation import NotationError
from jax_unmask.policies import available, parse_policy

REFERENCE = pathlib.Path(__file__).parents[1] / "fixtures" / "policy" / "dit_confidence"


def test_every_available_heuristic_parses_with_its_defaults():
    listing = available()
    assert listing["threshold"] == {"threshold": 0.9}
    assert listing["factor"] == {"factor": 1.0, "reference_compat": False}
    assert "temperature" in listing.pop("learned")
    for name, settings in listing.items():
        _, params = parse_policy(name)
        assert {key: float(value) for key, value in params.items()} == {
            key: pytest.approx(value) for key, value in settings.items() if key in params
        }


def test_whole_numbers_and_published_names():
    policy, params = parse_policy("dynamic_edit:max_post_steps=3,editing_threshold=0.5")
    assert (policy.max_post_steps, params["editing_threshold"]) == (3, 0.5)
    assert policy.needs.post_steps == 3
    assert parse_policy("low_confidence_static:steps=4") == parse_policy("top_confidence:steps=4")
    assert parse_policy("sequential") == parse_policy("left_to_right")


def test_builds_learned_policies():
    policy, params = parse_policy(
        f"learned:{REFERENCE},temperature=0.5,scale=2,distribution=dpls,dpls_stop_logit=0.25"
    )
    assert policy.distribution == "dpls"
    assert policy.dpls_stop_logit == 0.25
    assert (params["temperature"], params["scale"]) == (0.5, 2)
    policy, _ = parse_policy(f"learned:{REFERENCE},exact_fallback=true")
    assert policy.exact_fallback


def test_finds_shipped_policies_by_name(tmp_path, monkeypatch):
    (tmp_path / "policies").symlink_to(REFERENCE.parent)
    monkeypatch.setattr("jax_unmask.shipped.assets", lambda: tmp_path)
    policy, _ = parse_policy("learned:dit_confidence")
    assert policy.network.hidden_dim == 48


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("treshold:threshold=0.9", "mean threshold"),
        ("threshold:treshold=0.9", "mean threshold"),
        ("threshold:threshold=high", "threshold=high"),
        ("threshold:threshold=2", "threshold=2"),
        ("threshold:0.9", "'0.9'"),
        ("dynamic_edit:max_post_steps=1.5", "max_post_steps=1.5"),
        ("dynamic_edit:max_post_steps=-1", "max_post_steps=-1"),
        ("top_confidence:tokens_per_step=1.5", "tokens_per_step=1.5"),
        ("factor:reference_compat=1", "reference_compat=1"),
        ("learned", "learned:DIR"),
        ("learned:temperature=1", "learned:DIR"),
        (f"learned:{REFERENCE},temprature=1", "mean temperature"),
        (f"learned:{REFERENCE},temperature=0", "temperature=0"),
        (f"learned:{REFERENCE},distribution=gauss", "distribution=gauss"),
        (f"learned:{REFERENCE},network=3", "'network'"),
        ("jax_unmask.policies.Treshold", "mean Threshold"),
    ],
)
def test_mistakes_are_named(text: str, words: str):
    with pytest.raises(NotationError, match=words) as error:
        parse_policy(text)
    assert text.partition(":")[0] in str(error.value)


def test_an_import_path_is_a_name():
    policy = parse_policy("jax_unmask.policies.heuristics.Factor:factor=2,reference_compat=true")
    assert policy == parse_policy("factor:factor=2,reference_compat=true")


def test_missing_policies_are_named():
    with pytest.raises(FileNotFoundError, match="policy 'nobody' is neither"):
        parse_policy("learned:nobody")
    with pytest.raises(FileNotFoundError, match=r"policy_config\.json"):
        parse_policy("learned:/no/such/place")
