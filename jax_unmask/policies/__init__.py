"""Unmasking policies: heuristics and learned ones behind one interface."""

from __future__ import annotations

from jax_unmask.policies.base import Action, Needs, Observation, Params, Policy, row_uniform
from jax_unmask.policies.checkpoint import load_policy, save_policy
from jax_unmask.policies.hidden_network import HiddenNetworkConfig
from jax_unmask.policies.learned import LearnedPolicy
from jax_unmask.policies.network import NetworkConfig

__all__ = [
    "Action",
    "HiddenNetworkConfig",
    "LearnedPolicy",
    "Needs",
    "NetworkConfig",
    "Observation",
    "Params",
    "Policy",
    "load_policy",
    "row_uniform",
    "save_policy",
]
