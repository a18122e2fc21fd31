"""A policy network with an action distribution on top: something to train and to roll out."""

import dataclasses
import functools
from typing import Any, ClassVar, Literal, Protocol, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from jax_unmask import notation
from jax_unmask.policies import distributions
from jax_unmask.policies.base import Action, Needs, Observation, Params, number, row_uniform
from jax_unmask.policies.network import NetworkConfig
from jax_unmask.settings import SettingError, Settings, Variant, setting, to_config

NETWORKS = notation.Names(
    "network",
    {"confidence": "network.NetworkConfig", "hidden": "hidden_network.HiddenNetworkConfig"},
    package="jax_unmask.policies",
)
Distribution = Literal["bernoulli", "bernoulli_argmax", "dpls", "threshold"]
Context = Literal["full", "block"]


class Network(Protocol):
    """Shape and observations of a policy network: a frozen dataclass.

    A field `denoiser`, if there is one, gets the config of the denoiser (`DenoiserConfig`).
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def needs(self) -> Needs:
        """Inputs that `Observation` must have."""
        ...

    def observe(self, obs: Observation) -> Any:
        """The inputs of the network: a pytree of arrays [*B], one value per row, and [*B, L, ...],
        one per position."""
        ...

    def dummy_inputs(self, width: int) -> Any:
        """Inputs of one row with that many positions, to initialise parameters with."""
        ...

    def build(self) -> nn.Module:
        """A linen module that maps inputs to logits [*B, L] (float32); larger ones mean: fill."""
        ...


def network_settings(kind: str, **settings: Any) -> ConfigDict:
    """Settings of a network, for `config.policy.network`, with those that differ from defaults.

    The kind is "confidence", "hidden" (on the denoiser's hidden states), or the import path of a
    `Network` of your own.

    Raises:
        NotationError: there is no such network or setting.
    """
    defaults = to_config(Variant(NETWORKS, kind))
    for name in settings.keys() - defaults.keys():
        problem = f"the network has no setting {name!r}{notation.suggestion(name, defaults)}"
        raise notation.NotationError(kind, problem)
    return ConfigDict({**defaults, **settings})


@dataclasses.dataclass(frozen=True)
class LearnedPolicy(Settings):
    """Fills positions by a policy network and a distribution over actions.

    Its params are {"network": weights, "temperature": divides the logits, "scale": multiplies the
    Bernoulli probabilities}, and for a network with `alphas` "alpha": the weight of forwards in the
    reward that the actions should maximise. The settings beside the network are for test time
    (arXiv 2512.09106: temperature 0.5 or 1, scale 1): scalars, or arrays [B] with one value per
    row, never trained (no gradient reaches them).

    Attributes:
        network: shape and observations of the network.
    """

    network: Network = NetworkConfig()
    distribution: Distribution = setting(
        "bernoulli",
        "bernoulli draws each legal position independently and may draw nothing; bernoulli_argmax "
        "then fills the position with the largest logit; dpls is dynamic Plackett-Luce; threshold "
        "is deterministic: fill where the (scaled) probability is above one half, else the "
        "position with the largest logit.",
    )
    context: Context = setting(
        "full",
        "full shows the network the whole canvas, block the current block alone; either way it "
        "acts inside the block only.",
    )
    dpls_stop_logit: float = setting(
        0.0, "Logit of STOP in dynamic Plackett-Luce.", ge=-1e4, le=1e4
    )
    exact_fallback: bool = setting(
        False,
        "Score arg-max fallbacks (bernoulli_argmax) by their own likelihood, as the sum over both "
        "ways to get {arg max}, instead of that of a plain Bernoulli draw, as published.",
    )

    def check(self) -> None:
        self.require(
            not self.exact_fallback or self.distribution == "bernoulli_argmax",
            "exact_fallback",
            f"it has no meaning for `distribution` = {self.distribution!r}",
            "Set `distribution` = 'bernoulli_argmax'",
        )

    @property
    def needs(self) -> Needs:
        """Observations that the network needs."""
        draws = self.distribution != "threshold"
        return dataclasses.replace(self.network.needs, canvas=self.context == "full", keys=draws)

    def init_params(self, key: Array, gen_length: int = 1) -> Params:
        """Fresh parameters; none depends on the canvas length, which only traces the shapes."""
        return {"network": _init(self.network, key, gen_length), **self.params()}

    @property
    def alphas(self) -> tuple[float, ...]:
        """Smallest and largest alpha that the policy can be told; () for a policy of one alpha."""
        return getattr(self.network, "alphas", ())

    def params(
        self, temperature: ArrayLike = 1.0, scale: ArrayLike = 1.0, alpha: ArrayLike | None = None
    ) -> Params:
        """Settings, which are in the params beside the weights of the network; all above 0.

        Raises:
            SettingError: a value is out of range; or the policy cannot be told an alpha.
        """
        settings = {
            "temperature": number("temperature", temperature, gt=0),
            "scale": number("scale", scale, gt=0),
        }
        if self.alphas:
            low, high = self.alphas
            alpha = min(max(1.0, low), high) if alpha is None else alpha
            settings["alpha"] = number("alpha", alpha, ge=low, le=high)
        elif alpha is not None:
            problem = "the policy was trained for one alpha and cannot be told another"
            raise SettingError("alpha", alpha, problem, "Leave it out, or choose another policy")
        return settings

    def logits(self, params: Params, obs: Observation) -> Float[Array, "*B L"]:
        """Logits over the policy temperature; -inf outside the block with context "block"."""
        lead, length = obs.masked.shape[:-1], obs.masked.shape[-1]
        if self.alphas:
            alpha = jnp.asarray(jax.lax.stop_gradient(params["alpha"]), jnp.float32)
            obs = dataclasses.replace(obs, alpha=jnp.broadcast_to(alpha, lead))
        inputs = self.network.observe(obs)
        if self.context == "block":
            width = obs.block_length
            if not 1 <= width <= length:
                raise ValueError(
                    f"Observation.block_length={width} must lie in [1, {length}] for "
                    "context='block'"
                )
            inputs, start = _cut_block(inputs, obs.block_start, width)
        output = self.network.build().apply({"params": params["network"]}, inputs)
        raw = cast(Array, output)  # without mutable collections, apply returns the output alone
        if self.context == "block":
            outside = jnp.full((raw.shape[0], length), -jnp.inf, raw.dtype)
            place = jax.vmap(lambda row, x, at: jax.lax.dynamic_update_slice(row, x, (at,)))
            raw = place(outside, raw, start).reshape(*lead, length)
        temperature = jnp.asarray(jax.lax.stop_gradient(params["temperature"]), jnp.float32)
        return raw / temperature[..., None]

    def __call__(self, params: Params, obs: Observation, keys: Array) -> Action:
        """Draws an action for each row; see `Policy.__call__`."""
        logits = self.logits(params, obs)
        action = self._fill(logits, params, obs, keys)
        if obs.filled is None or not self.network.needs.filled:
            return action
        legal = obs.filled.legal
        if self.distribution == "threshold":
            return dataclasses.replace(action, take_back=legal & (logits > 0))
        draws = row_uniform(
            jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys), legal.shape[-1:]
        )
        back = distributions.bernoulli_sample(logits, legal, draws)
        log_prob = distributions.bernoulli_log_prob(logits, legal, back)
        return dataclasses.replace(action, take_back=back, log_prob=action.log_prob + log_prob)

    def _fill(self, logits: Array, params: Params, obs: Observation, keys: Array) -> Action:
        """The choice of positions to fill."""
        scale, legal = _scale(params), obs.legal
        length = legal.shape[-1]
        if self.distribution == "dpls":
            noise = jax.vmap(lambda key: jax.random.gumbel(key, (2 * length + 1,)))(keys)
            first = distributions.dpls_first_choice(logits, legal, noise[..., :length])
            fill, rank = distributions.dpls_sample(
                logits, legal, first, noise[..., length:], self.dpls_stop_logit
            )
            log_prob = distributions.dpls_log_prob(logits, legal, rank, self.dpls_stop_logit)
            return Action(fill=fill, log_prob=log_prob, rank=rank)
        if self.distribution == "threshold":
            fill = distributions.bernoulli_probs(logits, legal, scale) > 0.5
            fill = distributions.with_argmax_fallback(fill, logits, legal)
            return Action(fill=fill, log_prob=jnp.zeros(legal.shape[:-1], jnp.float32))
        fill = distributions.bernoulli_sample(logits, legal, row_uniform(keys, (length,)), scale)
        if self.distribution == "bernoulli_argmax":
            fill = distributions.with_argmax_fallback(fill, logits, legal)
        return Action(fill=fill, log_prob=self._score(logits, scale, legal, fill))

    def log_prob(self, params: Params, obs: Observation, action: Action) -> Float[Array, "*B"]:
        """Log-likelihood of the action in each row, over the legal positions; differentiable.

        What is taken back counts as drawn, whether or not the row had the steps left to do it.

        Leading axes are free ([B], [T, B], ...), with settings broadcast against them. Rows
        without a legal position give 0.

        Raises:
            ValueError: for a deterministic policy, or a DPLS policy and an action without ranks.
        """
        return self._log_prob(self._trainable_logits(params, obs, action), params, obs, action)

    def log_prob_and_entropy(
        self, params: Params, obs: Observation, action: Action
    ) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
        """`log_prob` and `entropy` from one pass of the network, and one backward pass."""
        logits = self._trainable_logits(params, obs, action)
        return self._log_prob(logits, params, obs, action), self._entropy(logits, obs)

    def entropy(self, params: Params, obs: Observation) -> Float[Array, "*B"]:
        """Entropy in nats of each row's choice, for entropy bonuses and monitoring.

        Bernoulli: the exact sum over legal positions, without scale and fallback. DPLS: of the
        first choice, a lower bound. Deterministic: 0.
        """
        if self.distribution == "threshold":
            return jnp.zeros(obs.legal.shape[:-1], jnp.float32)
        return self._entropy(self.logits(params, obs), obs)

    def fill_probabilities(self, params: Params, obs: Observation) -> Float[Array, "*B L"]:
        """Probability of filling each position, 0 where not legal; for the report's viewer.

        Bernoulli: of each position's own draw, without the arg-max fallback; a deterministic policy
        fills those above one half. DPLS: the marginal one of the ordered draw.
        """
        logits = self.logits(params, obs)
        if self.distribution == "dpls":
            return distributions.dpls_probs(logits, obs.legal, self.dpls_stop_logit)
        return distributions.bernoulli_probs(logits, obs.legal, _scale(params))

    def _trainable_logits(self, params: Params, obs: Observation, action: Action) -> Array:
        if self.distribution == "threshold":
            raise ValueError(
                "distribution='threshold' is deterministic and has no likelihood; train with "
                "'bernoulli', 'bernoulli_argmax' or 'dpls'"
            )
        if self.distribution == "dpls" and action.rank is None:
            raise ValueError(
                "Action.rank is None, but dynamic Plackett-Luce scores ordered actions; "
                "take actions from a policy with distribution='dpls'"
            )
        return self.logits(params, obs)

    def _log_prob(self, logits: Array, params: Params, obs: Observation, action: Action) -> Array:
        if self.distribution == "dpls":
            assert action.rank is not None  # Was checked before the network ran.
            score = distributions.dpls_log_prob(
                logits, obs.legal, action.rank, self.dpls_stop_logit
            )
        else:
            score = self._score(logits, _scale(params), obs.legal, action.fill)
        if action.take_back is None or obs.filled is None:
            return score
        back = distributions.bernoulli_log_prob(logits, obs.filled.legal, action.take_back)
        return score + back

    def _entropy(self, logits: Array, obs: Observation) -> Array:
        if self.distribution != "dpls":
            return distributions.bernoulli_entropy(logits, obs.decisions)
        entropy = distributions.dpls_entropy(logits, obs.legal)
        if obs.filled is None:
            return entropy
        return entropy + distributions.bernoulli_entropy(logits, obs.filled.legal)

    def _score(self, logits: Array, scale: Array, legal: Array, fill: Array) -> Array:
        if self.exact_fallback:
            return distributions.bernoulli_argmax_log_prob(logits, legal, fill, scale)
        return distributions.bernoulli_log_prob(logits, legal, fill, scale)


def _scale(params: Params) -> Array:
    return jnp.asarray(jax.lax.stop_gradient(params["scale"]), jnp.float32)


@functools.partial(jax.jit, static_argnums=(0, 2))
def _init(network: Network, key: Array, gen_length: int) -> Params:
    """Fresh parameters of a network, without the forward that traces their shapes."""
    params: Params = network.build().init(key, network.dummy_inputs(gen_length))["params"]
    return params


def _cut_block(inputs: Any, block_start: Array, width: int) -> tuple[Any, Array]:
    """Each row's block of its per-position inputs, with one leading axis, and where it begins."""
    lead, start = block_start.ndim, block_start.reshape(-1)

    def cut(x: Array) -> Array:
        rows = x.reshape(-1, *x.shape[lead:])
        if x.ndim == lead or rows.shape[1] == width:  # Hidden states may be those of the block.
            return rows
        return jax.vmap(lambda row, at: jax.lax.dynamic_slice_in_dim(row, at, width))(rows, start)

    return jax.tree.map(cut, inputs), start
