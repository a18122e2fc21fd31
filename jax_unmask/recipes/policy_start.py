"""The policy that training goes on from (`policy.init_from`)."""

import dataclasses
from typing import Any

from jax_unmask import policies
from jax_unmask.policies.learned import NETWORKS, Network
from jax_unmask.policies.network import INPUTS, with_inputs
from jax_unmask.policies.spec import policy_directory
from jax_unmask.settings import ConfigError

ONLY_AT_INIT = ("initial_bias",)
"""Settings of networks that a policy which goes on from another one may change."""


def _described(network: Network) -> dict[str, Any]:
    """A network's kind and settings, as `config.policy.network` has them."""
    return {"kind": NETWORKS.name_of(type(network)), **dataclasses.asdict(network)}


def load_start(directory: str | None, network: Network) -> Any:
    """Weights of the policy to start from, for a network; None without one."""
    if not directory:
        return None
    try:
        saved, params = policies.load_policy(policy_directory(directory))
    except (ValueError, OSError) as error:
        remedy = "Give a run that trained a policy, its directory policy/, or a name"
        problem = str(error).rstrip(".")
        raise ConfigError("policy.init_from", directory, problem, remedy) from error
    check_start(directory, network, saved.network)
    if not isinstance(network, policies.NetworkConfig):
        return params
    assert isinstance(saved.network, policies.NetworkConfig)  # Their kinds are equal.
    return {**params, "network": with_inputs(params["network"], saved.network, network)}


def check_start(directory: str, network: Network, saved: Network) -> None:
    """Raises a `ConfigError` unless training can go on from a network, maybe by further inputs."""
    ours, theirs = _described(network), _described(saved)
    # Settings that affect only initial values may differ.
    changed = [
        name
        for name in ours | theirs
        if theirs.get(name) != ours.get(name) and name not in ONLY_AT_INIT
    ]
    if isinstance(network, policies.NetworkConfig) and set(changed) <= set(INPUTS):
        assert isinstance(saved, policies.NetworkConfig)
        if set(saved.feature_names) <= set(network.feature_names):
            return
    if changed:
        different = (
            f"{name} ({theirs.get(name)!r} there, {ours.get(name)!r} here)" for name in changed
        )
        raise ConfigError(
            "policy.init_from",
            directory,
            "its network is another one: " + ", ".join(different),
            "Give config.policy.network the values of that policy",
        )
