"""Surrogates: the states that stand for a response, each kind another RL method for dLLMs.

The exact likelihood of a response under a masked diffusion model is out of reach. Every method
evaluates its tokens at some partly masked states instead. Reward, advantage, ratio, clipping and
KL are the same for all of them; only the states differ (and, for `Elbo`, what a ratio belongs to).
"""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int

from jax_unmask.notation import Names, NotationError
from jax_unmask.policies.order import descending_ranks
from jax_unmask.settings import SettingError, Settings, setting, setting_of

Indices = Int[Array, " C"]
Threshold = Literal["row", "block", "token"]

SURROGATES = Names(
    "surrogate",
    {
        "trace": "Trace",
        "random_masking": "RandomMasking",
        "coupled": "Coupled",
        "diffu_grpo": "FullyMasked",
        "espo": "Elbo",
    },
    "jax_unmask.learners.surrogates",
)


@struct.dataclass
class Canvas:
    """Layout of a batch of responses, for surrogates."""

    trainable: Bool[Array, "B L"]  # See `states.trainable_tokens`.
    group: Int[Array, "B L"]  # Of merged steps, see `states.merged_steps`.
    time: Int[Array, "B L"]  # Order of the groups.
    block_of: Int[Array, "B L"]  # Attention block, from 0; all 0 with full attention.
    prompt: Bool[Array, "B P"]  # Real prompt tokens.


@struct.dataclass
class States:
    """Partly masked states of C responses.

    Attributes:
        masked: canvas positions that hold the mask token.
        trained: positions whose tokens are evaluated; a subset of `masked` (but for
            `Autoregressive`).
        prompt_masked: prompt positions that hold the mask token, or None.
        causal: the row's attention is causal; None if that of none is.
    """

    masked: Bool[Array, "C L"]
    trained: Bool[Array, "C L"]
    prompt_masked: Bool[Array, "C P"] | None = None
    causal: Bool[Array, " C"] | None = None


class Surrogate:
    """A way to choose states; subclasses are frozen dataclasses.

    The log-probabilities of all states of a response fit into `num_slots` arrays [B, L], because
    states that share a slot train different tokens.

    Attributes:
        unit: whether each token has a ratio of its own, or each response one for all.
        redraws: whether each pass over a batch draws other states.
    """

    unit: ClassVar[Literal["token", "sequence"]] = "token"
    redraws: ClassVar[bool] = True

    def num_states(self, length: int) -> int:
        """States of a response, some of which may train nothing.

        Args:
            length: of the canvas; with block attention of a block, since one state then holds a
                state of each block.
        """
        del length
        return 1

    @property
    def num_slots(self) -> int:
        return 1

    def slot(self, index: Indices) -> Indices:
        return jnp.zeros_like(index)

    def states(self, canvas: Canvas, key: Array, index: Indices, row: Indices) -> States:
        """States number `index` of responses `row`.

        Args:
            canvas: the whole batch.
            key: typed PRNG key of the pass; what a state draws depends on it, on `index` and `row`.
            index: which state of the response, below `num_states(L)`.
            row: which response.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class MaskRatios(Settings):
    """Range of the mask ratios that are drawn."""

    mask_low: float = setting(0.1, "Smallest mask ratio of states that are drawn.", ge=0, le=1)
    mask_high: float = setting(0.9, "Largest mask ratio of states that are drawn.", ge=0, le=1)

    def check(self) -> None:
        super().check()
        self.require_at_most("mask_low", "mask_high")


@dataclasses.dataclass(frozen=True)
class _Drawn(Settings, Surrogate):
    """Masks that are drawn, alone or in pairs of complements, which share a slot.

    Attributes:
        complement: whether every mask is followed by the one that hides the other tokens.
    """

    draws: int = setting(
        25, "Of methods that draw masks: masks per response, or pairs of them.", ge=1
    )
    complement: bool = False

    def num_states(self, length: int) -> int:
        del length
        return self.draws * (1 + self.complement)

    @property
    def num_slots(self) -> int:
        return self.draws

    def slot(self, index: Indices) -> Indices:
        return index // (1 + self.complement)


@dataclasses.dataclass(frozen=True)
class Trace(Settings, Surrogate):
    """TraceRL: the states that the rollout visited, `shrink` neighbouring steps merged into one.

    arXiv 2509.06949, section 4. Every trainable token is trained exactly once, in the state in
    which (for `shrink` = 1) it was filled in.
    """

    shrink: int = setting(1, "Of trace: neighbouring steps s that are merged.", ge=1)
    redraws: ClassVar[bool] = False

    def num_states(self, length: int) -> int:
        return -(-length // self.shrink)

    def states(self, canvas: Canvas, key: Array, index: Indices, row: Indices) -> States:
        del key
        group = canvas.group[row]
        trained = (group == index[:, None]) & canvas.trainable[row]
        return States(masked=group >= index[:, None], trained=trained)


@dataclasses.dataclass(frozen=True)
class RandomMasking(MaskRatios, _Drawn):
    """Random masks with a random ratio (UniGRPO of MMaDA, arXiv 2505.15809).

    Untrained padding stays masked. 25 draws are published for full attention.

    Attributes:
        mask_threshold: a row, a block, or (as the public code of TraceRL has it for block
            attention, where ratios are then always near one half) a token.
    """

    mask_threshold: Threshold = setting(
        "row", "Of random_masking and coupled: unit with a mask ratio of its own."
    )

    def states(self, canvas: Canvas, key: Array, index: Indices, row: Indices) -> States:
        trainable = canvas.trainable[row]
        ratio, token = _uniforms(key, self.slot(index), row, trainable.shape[1], 2)
        if self.mask_threshold == "row":
            ratio = ratio[:, :1]
        elif self.mask_threshold == "block":
            ratio = jnp.take_along_axis(ratio, canvas.block_of[row], axis=1)
        hit = token < self.mask_low + (self.mask_high - self.mask_low) * ratio
        return _half(hit, trainable, index, self.complement)


@dataclasses.dataclass(frozen=True)
class Coupled(RandomMasking):
    """coupled-GRPO of DiffuCoder (arXiv 2506.20639): each pair trains every token exactly once."""

    complement: bool = True


@dataclasses.dataclass(frozen=True)
class FullyMasked(_Drawn):
    """diffu-GRPO of d1 (arXiv 2504.12216): one step from a canvas of masks, prompts partly masked.

    Published are one draw of prompt masks per response and pass, and a `prompt_mask_ratio` of 0.15.
    """

    draws: int = setting_of(_Drawn, "draws", default=1)
    prompt_mask_ratio: float = setting(
        0.15, "Of diffu_grpo: probability that a prompt token is masked.", ge=0, lt=1
    )
    complement: bool = dataclasses.field(default=False, init=False)

    def states(self, canvas: Canvas, key: Array, index: Indices, row: Indices) -> States:
        trainable, prompt = canvas.trainable[row], canvas.prompt[row]
        (token,) = _uniforms(key, index, row, prompt.shape[1], 1)
        return States(
            masked=jnp.ones_like(trainable),
            trained=trainable,
            prompt_masked=prompt & (token < self.prompt_mask_ratio),
        )


@dataclasses.dataclass(frozen=True)
class Elbo(_Drawn):
    """ESPO (arXiv 2512.03759): one ratio per response, from its evidence lower bound.

    l of the n trainable tokens are masked, l uniform in 1 .. n; the bound's weight n / l makes the
    bound per token the mean over states of the mean log-probability of a state's masked tokens. So
    this surrogate goes with the normaliser "step". Complements take variance out of the ratio.
    """

    draws: int = setting_of(_Drawn, "draws", default=2)
    complement: bool = True
    unit: ClassVar[Literal["token", "sequence"]] = "sequence"

    def states(self, canvas: Canvas, key: Array, index: Indices, row: Indices) -> States:
        trainable = canvas.trainable[row]
        unit, order = _uniforms(key, self.slot(index), row, trainable.shape[1], 2)
        count = jnp.sum(trainable, axis=1, keepdims=True)
        masks = 1 + jnp.minimum((unit[:, :1] * count).astype(jnp.int32), count - 1)
        return _half(descending_ranks(-order, trainable) < masks, trainable, index, self.complement)


@dataclasses.dataclass(frozen=True)
class SemiAutoregressive(MaskRatios, Surrogate):
    """A state per block: those of a block-wise decoder of a full-attention model.

    Earlier blocks are finished, later ones masked, and the block itself is masked at random, at a
    ratio of its own (arXiv 2509.06949, section 5.2, "semi-AR").

    Attributes:
        block_length: positions per block, counted from the start of the response.
    """

    _: dataclasses.KW_ONLY
    block_length: int

    def num_states(self, length: int) -> int:
        return -(-length // self.block_length)

    def states(self, canvas: Canvas, key: Array, index: Indices, row: Indices) -> States:
        trainable = canvas.trainable[row]
        length = trainable.shape[1]
        ratio, token = _uniforms(key, index, row, length, 2)
        hit = token < self.mask_low + (self.mask_high - self.mask_low) * ratio[:, :1]
        block = jnp.arange(length) // self.block_length
        here, behind = block == index[:, None], block > index[:, None]
        trained = here & hit & trainable
        return States(masked=behind | trained | (here & ~trainable), trained=trained)


@dataclasses.dataclass(frozen=True)
class Autoregressive(Surrogate):
    """The whole text, nothing masked: next-token prediction of a causal model.

    For families whose hidden states score the next token, with causal attention: no position
    attends to the token that it is trained to predict. A cold start for such a model.
    """

    redraws: ClassVar[bool] = False

    def states(self, canvas: Canvas, key: Array, index: Indices, row: Indices) -> States:
        del key, index
        trainable = canvas.trainable[row]
        return States(masked=jnp.zeros_like(trainable), trained=trainable)


@dataclasses.dataclass(frozen=True)
class SurrogateSettings(MaskRatios):
    """The states that reinforcement trains on."""

    surrogate: str = setting(
        "trace",
        "Method whose states stand for a response: trace (TraceRL), random_masking, coupled, "
        "diffu_grpo, espo, or the import path of a `learners.surrogates.Surrogate` of one's own.",
    )
    shrink: int = setting_of(Trace, "shrink", default=8)
    draws: int | None = setting(
        None,
        "States per response of the other surrogates, pairs for coupled and espo; None for the "
        f"published {RandomMasking.draws}, {Coupled.draws}, {FullyMasked.draws} and {Elbo.draws}.",
        ge=1,
    )
    mask_threshold: Threshold = setting_of(RandomMasking, "mask_threshold")
    prompt_mask_ratio: float = setting_of(FullyMasked, "prompt_mask_ratio")

    def check(self) -> None:
        super().check()
        try:
            SURROGATES(self.surrogate)
        except NotationError as error:
            raise SettingError("surrogate", self.surrogate, error.problem, "Correct it") from error

    def build(self) -> Surrogate:
        """The surrogate, with those of these settings that it has."""
        kind = SURROGATES(self.surrogate)
        values = {each.name: getattr(self, each.name, None) for each in dataclasses.fields(kind)}
        found: Surrogate = kind(**{k: v for k, v in values.items() if v is not None})
        return found


def _half(hit: Array, trainable: Array, index: Array, complement: bool) -> States:
    """States that hide what was hit, or with complements, at odd indices, what was not."""
    if complement:
        hit ^= (index % 2 == 1)[:, None]
    return States(masked=hit | ~trainable, trained=hit & trainable)


def _uniforms(key: Array, index: Array, row: Array, length: int, count: int) -> list[Array]:
    """`count` arrays [C, length] of uniforms in [0, 1), a function of key, index and row."""

    def of_row(index: Array, row: Array) -> Array:
        own = jax.random.fold_in(jax.random.fold_in(key, row), index)
        return jax.random.uniform(own, (count, length))

    return list(jnp.moveaxis(jax.vmap(of_row)(index, row), 1, 0))
