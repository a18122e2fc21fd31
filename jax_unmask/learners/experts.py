"""Expert steering: a heuristic's rollouts as extra members of each group.

In full diffusion an untrained policy hardly ever answers right, so most groups carry no signal. A
heuristic that decodes block by block does: its rollouts join the group and show the policy where
to go (arXiv 2512.09106; published with threshold decoding at 0.9 and blocks of 32).
"""

import dataclasses
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from jax_unmask.policies.base import Action, Observation
from jax_unmask.policies.order import descending_ranks
from jax_unmask.rollout.trajectory import Records
from jax_unmask.settings import MAX_INT, Settings, setting

Tree = TypeVar("Tree")


@dataclasses.dataclass(frozen=True)
class ExpertSettings(Settings):
    """The rollouts of another policy that join each group."""

    count: int = setting(0, "Expert rollouts E per group; 0 for none.", ge=0)
    policy: str = setting(
        "threshold:threshold=0.9",
        "The policy of the expert. One that is told alpha is told that of the group, if its "
        "notation names none.",
    )
    block_length: int = setting(32, "Block length of its rollouts, in tokens.", ge=1)
    imitation: float = setting(
        0.0,
        "Weight of the log-likelihood of expert rollouts beside the objective (0 published).",
        ge=0,
        le=1e6,
    )
    imitation_steps: int = setting(
        0, "First training steps in which that is added.", ge=0, le=MAX_INT
    )

    imitated: Literal["right", "all"] = setting(
        "right",
        "Which rollouts are imitated: all where the expert is a trained policy, whose wrong "
        "answers are fast.",
    )

    def check(self) -> None:
        self.require(
            bool(self.imitation) == bool(self.imitation_steps),
            "imitation",
            f"one is nothing without the other, and `imitation_steps` = {self.imitation_steps}",
            "Set both, or leave both at 0",
        )
        self.require(
            not self.imitation or self.count > 0,
            "imitation",
            f"there is no expert to imitate (`count` = {self.count})",
            "Set `count` to at least 1, or `imitation` and `imitation_steps` to 0",
        )


def merge_groups(
    policy: Tree, expert: Tree, group_size: int, num_experts: int, axis: int = 0
) -> Tree:
    """Puts the E expert rows of each prompt after its G policy rows.

    Args:
        policy: pytree whose leaves have P * G rows along `axis`, those of a prompt together.
        expert: pytree of the same structure with P * E rows, prompts in the same order.
        group_size: G.
        num_experts: E.
        axis: the axis of the rows.
    """

    def merge(ours: Array, theirs: Array) -> Array:
        lead, tail = ours.shape[:axis], ours.shape[axis + 1 :]
        groups = [
            ours.reshape(*lead, -1, group_size, *tail),
            theirs.reshape(*lead, -1, num_experts, *tail),
        ]
        return jnp.concatenate(groups, axis=axis + 1).reshape(*lead, -1, *tail)

    return jax.tree.map(merge, policy, expert)


def with_experts(
    policy: Records, expert: Records, group_size: int, num_experts: int
) -> tuple[Records, Bool[Array, " B"]]:
    """Merges expert records into those of the policy, group by group.

    An expert works in blocks of its own, the policy on the whole canvas. For the policy's
    likelihood every masked position of an expert step is therefore legal: the policy learns from
    the expert not to fill positions beyond the expert's block.

    Where the policy draws in order (dynamic Plackett-Luce) and the expert does not, the expert's
    positions count as drawn by descending confidence.

    Args:
        policy: records of the policy's P * G rows, in full diffusion.
        expert: records of P * E expert rows with the same canvas length, made by a policy whose
            needs cover those of the learning policy (`policies.base.WithObservations`).
        group_size: G.
        num_experts: E.

    Returns:
        Records of P * (G + E) rows, see `merge_groups`, and which rows are experts. Their
        log-probabilities are not yet those of the policy: `PolicyLearner.update` computes them.

    Raises:
        ValueError: the policy's rollouts were not full diffusion, or the records do not match.
    """
    length = policy.obs.masked.shape[-1]
    if policy.obs.block_length != length:
        raise ValueError(
            f"expert steering needs full diffusion, but the policy's block_length="
            f"{policy.obs.block_length} and gen_length={length}; set block_length={length} or "
            "expert.count=0"
        )
    if expert.obs.masked.shape[-1] != length:
        raise ValueError(
            f"the expert's gen_length={expert.obs.masked.shape[-1]} differs from the policy's "
            f"{length}"
        )
    aligned = dataclasses.replace(
        expert,
        obs=_observation_of(policy.obs, expert.obs),
        action=_as_action_of(policy.action, expert),
    )
    records = merge_groups(policy, aligned, group_size, num_experts, axis=1)
    rows = jnp.arange(records.active.shape[1])
    return records, rows % (group_size + num_experts) >= group_size


def _observation_of(policy: Observation, expert: Observation) -> Observation:
    """The expert's observation as the policy would have had it: one block, all masks legal."""
    optional: dict[str, Any] = {}
    for name in ("entropy", "hidden", "filled"):
        seen = getattr(expert, name)
        if getattr(policy, name) is None:
            seen = None
        elif seen is None:
            raise ValueError(
                f"the policy observes {name}, which the expert's records lack; wrap the expert in "
                "WithObservations(expert, policy.needs)"
            )
        optional[name] = seen
    top_k = policy.top_probs.shape[-1]
    if expert.top_probs.shape[-1] < top_k:
        raise ValueError(
            f"the policy observes top_k={top_k} probabilities, the expert's records hold "
            f"{expert.top_probs.shape[-1]}; roll out WithObservations(expert, policy.needs)"
        )
    if optional["filled"] is not None:
        optional["filled"] = dataclasses.replace(optional["filled"], legal=~expert.masked)
    return dataclasses.replace(
        expert,
        top_probs=expert.top_probs[..., :top_k],
        legal=expert.masked,
        step_in_block=expert.step,
        block_start=jnp.zeros_like(expert.block_start),
        block_length=policy.block_length,
        **optional,
    )


def _as_action_of(policy: Action, expert: Records) -> Action:
    action = expert.action
    if policy.take_back is None:
        action = dataclasses.replace(action, take_back=None)
    elif action.take_back is None:
        action = dataclasses.replace(action, take_back=jnp.zeros_like(action.fill))
    if policy.rank is None:
        return dataclasses.replace(action, rank=None)
    if action.rank is not None:
        return action
    # 1-based rank of the filled positions by descending confidence, 0 elsewhere.
    rank = descending_ranks(expert.obs.confidence, action.fill) + 1
    return dataclasses.replace(action, rank=jnp.where(action.fill, rank, 0))
