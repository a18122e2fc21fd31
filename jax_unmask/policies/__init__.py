"""Unmasking policies: heuristics and learned ones behind one interface."""

from jax_unmask.policies.base import Action, Needs, Observation, Params, PerRow, Policy, row_uniform
from jax_unmask.policies.checkpoint import load_policy, save_policy, settings_of
from jax_unmask.policies.family_samplers import (
    DreamThreshold,
    Dynamic,
    DynamicEdit,
    Entropy,
    MaskgitPlus,
    Origin,
    TopkMargin,
)
from jax_unmask.policies.heuristics import (
    ConflictFree,
    CumulatedEntropy,
    EntropyBounded,
    Factor,
    FrontierThreshold,
    FrontierTold,
    LeftToRight,
    LowConfidence,
    Margin,
    Random,
    Reconsider,
    Threshold,
    TopConfidence,
)
from jax_unmask.policies.hidden_network import HiddenNetworkConfig
from jax_unmask.policies.learned import LearnedPolicy, network_settings
from jax_unmask.policies.network import NetworkConfig
from jax_unmask.policies.spec import DEFAULT, adjusted, available, parse_policy, policy_directory

__all__ = [
    "DEFAULT",
    "Action",
    "ConflictFree",
    "CumulatedEntropy",
    "DreamThreshold",
    "Dynamic",
    "DynamicEdit",
    "Entropy",
    "EntropyBounded",
    "Factor",
    "FrontierThreshold",
    "FrontierTold",
    "HiddenNetworkConfig",
    "LearnedPolicy",
    "LeftToRight",
    "LowConfidence",
    "Margin",
    "MaskgitPlus",
    "Needs",
    "NetworkConfig",
    "Observation",
    "Origin",
    "Params",
    "PerRow",
    "Policy",
    "Random",
    "Reconsider",
    "Threshold",
    "TopConfidence",
    "TopkMargin",
    "adjusted",
    "available",
    "load_policy",
    "network_settings",
    "parse_policy",
    "policy_directory",
    "row_uniform",
    "save_policy",
    "settings_of",
]
