"""The interface between the rollout and anything that decides which positions to fill.

Heuristics and learned policies are the same kind of thing: a frozen (hashable, jit-static) object
that maps an `Observation` to an `Action`. Everything numeric that a user may want to sweep (a
threshold, a policy temperature) is an entry of the policy's `params` pytree, so a sweep over
settings re-uses one compiled rollout.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from jax_unmask.settings import Setting

Params = Any


@dataclasses.dataclass(frozen=True)
class Needs:
    """Inputs of a policy beyond the candidate's confidence; the rollout computes no others.

    Attributes:
        top_k: how many of the largest probabilities per position (`Observation.top_probs`).
        entropy: whether `Observation.entropy` is filled.
        hidden: whether `Observation.hidden` (the denoiser's last hidden state) is filled.
        filled: whether `Observation.filled` is there, for policies that take tokens back.
        canvas: whether it reads scores of positions outside the current block. If not, the rollout
            computes the last layer and the projection to the vocabulary in the block only.
        keys: whether it draws from its random keys: evaluations repeat it under several seeds.
        post_steps: None if filled tokens are final; otherwise the most forwards on a block that
            holds no mask any more. They end early with one that changes nothing.
    """

    top_k: int = 1
    entropy: bool = False
    hidden: bool = False
    filled: bool = False
    canvas: bool = False
    keys: bool = False
    post_steps: int | None = None

    @property
    def final_tokens(self) -> bool:
        """Whether tokens stay as they were filled."""
        return not (self.filled or self.post_steps)


@struct.dataclass
class Filled:
    """The filled positions at one step. B rows, L canvas positions.

    Attributes:
        token: what stands there.
        probability: the denoiser's probability of that token; 0 at masked positions.
        age: steps since it was written; 0 at masked positions.
        legal: it may be taken back: filled, and inside the row's current block.
    """

    token: Int[Array, "*B L"]
    probability: Float[Array, "*B L"]
    age: Int[Array, "*B L"]
    legal: Bool[Array, "*B L"]


@struct.dataclass
class Observation:
    """Inputs of a policy at one step. B rows, L canvas positions, K = `Needs.top_k`.

    Scores of each position come from the last forward that computed it; they are 0 before the
    first. Those of the current block are up to date, and without a cache so are all that the
    policy reads (`Needs.canvas`).

    Attributes:
        candidate: token that would be written at each position.
        confidence: denoiser probability of the candidate (noise-free, float32).
        top_probs: the K largest probabilities, in descending order.
        entropy: entropy of the denoiser's distribution in nats, or None.
        hidden: last hidden states of the denoiser in its compute type, or None; of the canvas, or
            [B, BL, D] of the current block for a policy that does not read the canvas. The layers
            that read them are trained, so they are recorded as they are and not projected: per row
            and step 2 MB for 256 positions of width 4096 in bfloat16, 0.25 MB for a block of 32.
        masked: position still holds the mask token.
        legal: position may be filled now: masked and inside the row's current block.
        step: denoiser forwards that the row has used before this one.
        step_in_block: the same, counted from the start of the current block.
        block_start: first canvas position of the current block.
        filled: the filled positions, or None.
        alpha: weight of forwards that the policy is told, for networks that read it, or None.
        block_length: length of a block (static).
    """

    candidate: Int[Array, "*B L"]
    confidence: Float[Array, "*B L"]
    top_probs: Float[Array, "*B L K"]
    masked: Bool[Array, "*B L"]
    legal: Bool[Array, "*B L"]
    step: Int[Array, "*B"]
    step_in_block: Int[Array, "*B"]
    block_start: Int[Array, "*B"]
    entropy: Float[Array, "*B L"] | None = None
    hidden: Float[Array, "*B W D"] | None = None
    filled: Filled | None = None
    alpha: Float[Array, "*B"] | None = None
    block_length: int = struct.field(pytree_node=False, default=0)

    @property
    def decisions(self) -> Bool[Array, "*B L"]:
        """Positions where the policy has a choice: to fill, or to take back."""
        return self.legal if self.filled is None else self.legal | self.filled.legal


@struct.dataclass
class Action:
    """The positions that a policy fills, and how likely it was to choose them.

    Attributes:
        fill: positions to fill; a subset of `Observation.legal`.
        log_prob: log-probability of the choice (0 for deterministic policies).
        rank: 1-based order in which an ordered distribution (dynamic Plackett-Luce) drew the
            positions, 0 where nothing was drawn; None for unordered distributions.
        edit: filled positions of the current block whose tokens the candidates replace; None if
            tokens are final. Only where the candidate is another token does anything happen.
        take_back: filled positions of the current block that become masks again, or None. A row
            whose remaining steps would not do to fill all of its masks one by one takes none back.
    """

    fill: Bool[Array, "*B L"]
    log_prob: Float[Array, "*B"]
    rank: Int[Array, "*B L"] | None = None
    edit: Bool[Array, "*B L"] | None = None
    take_back: Bool[Array, "*B L"] | None = None


class Policy(Protocol):
    """Chooses positions to fill. Implementations are frozen dataclasses.

    Fields of the dataclass that are bool, int, float, str or Literal are settings that are fixed
    when the rollout is compiled; the parameters of `params` are settings that are not. Both can be
    given in the notation of `parse_policy`. A policy may also have

        alphas: the smallest and largest value of its setting `alpha`, the weight of forwards that
            it can be told; () without (see `alphas_of`).
        of_canvas: whether its setting `steps` counts the steps of the whole canvas and not of each
            block; False without (see `steps_are_of_canvas`).
        fill_probabilities(params, obs) -> [*B, L]: probabilities that web pages show.
    """

    @property
    def needs(self) -> Needs:
        """The fields that `Observation` must have."""
        ...

    @property
    def params(self) -> Callable[..., Params]:
        """A method with a keyword parameter and its default for each numeric setting.

        Returns:
            The params that `__call__` takes: a dict of scalars, by the settings' names. Raises
            ValueError for a value out of range.
        """
        ...

    def __call__(self, params: Params, obs: Observation, keys: Array) -> Action:
        """Chooses an action for each row.

        Args:
            params: the policy's parameters and numeric settings; scalars, or arrays [B] where each
                row has its own (`PerRow` in the params of a rollout).
            obs: the observation of B rows.
            keys: typed PRNG keys [B], one per row, so that a row's draw does not depend on the
                other rows.
        """
        ...


def alphas_of(policy: Policy) -> tuple[float, ...]:
    """The smallest and largest alpha that a policy can be told; () for one that is told none."""
    return getattr(policy, "alphas", ())


def steps_are_of_canvas(policy: Policy) -> bool:
    """Whether a policy's setting `steps` counts the steps of the whole canvas, not of a block."""
    return getattr(policy, "of_canvas", False)


@dataclasses.dataclass(frozen=True)
class WithObservations:
    """Wraps a policy so that the rollout also records `more`, which another policy needs."""

    policy: Policy
    more: Needs

    @property
    def needs(self) -> Needs:
        """Needs of both policies."""
        own, more = self.policy.needs, self.more
        fields = ("top_k", "entropy", "hidden", "filled", "canvas")
        both = {name: max(getattr(own, name), getattr(more, name)) for name in fields}
        return dataclasses.replace(own, **both)

    @property
    def params(self) -> Callable[..., Params]:
        """Params of the policy."""
        return self.policy.params

    def __call__(self, params: Params, obs: Observation, keys: Array) -> Action:
        """The action of the policy."""
        return self.policy(params, obs, keys)


@struct.dataclass
class PerRow:
    """A setting with one value per row of a rollout, in a policy's params; arrays [B, ...].

    A policy gets the values in its place.
    """

    values: Any


def select_settings(params: Params, select: Callable[[Any], Any]) -> Params:
    """A policy's params with `select(values)`, those of the wanted rows, for each `PerRow`."""
    return jax.tree.map(
        lambda leaf: select(leaf.values) if isinstance(leaf, PerRow) else leaf,
        params,
        is_leaf=lambda leaf: isinstance(leaf, PerRow),
    )


def strong(params: Params) -> Params:
    """Arrays without weak types, which would compile another program for the same settings."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), params)


def number(name: str, value: ArrayLike, *, whole: bool = False, **bounds: float) -> np.ndarray:
    """A numeric setting, or an array of them, as float32 (as int32 where it is whole).

    It stays on the host: a server reads one for each request.

    Raises:
        SettingError: one lies outside of the bounds, which are those of `settings.Setting`.
    """
    numbers = np.asarray(value)
    is_float = numbers.dtype.kind == "f" and np.isfinite(numbers).all()
    if whole and is_float and (numbers % 1 == 0).all():
        numbers = numbers.astype(np.int64)
    declared_as = Setting(name, None, "", int if whole else float, **bounds)  # type: ignore[arg-type]
    for each in numbers.ravel().tolist():
        declared_as.check(each)
    return np.asarray(numbers, np.int32 if whole else np.float32)


def row_uniform(keys: Array, shape: tuple[int, ...]) -> Float[Array, "B ..."]:
    """Uniform draws in [0, 1) of the given shape, from one key per row."""
    return jax.vmap(lambda key: jax.random.uniform(key, shape))(keys)
