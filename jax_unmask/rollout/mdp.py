"""The MDP of unmasking: where rows stand, what a policy observes, what its action does.

Jazbec et al. (arXiv 2512.09106, section 3): the state is the canvas, an action is a set of
positions to fill, the frozen denoiser is the environment. Everything here is row by row.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_unmask.denoisers.attention import fuses
from jax_unmask.denoisers.head import Scores, score_candidates, score_targets
from jax_unmask.denoisers.positions import window_of
from jax_unmask.denoisers.transformer import Denoiser, Params
from jax_unmask.policies.base import Observation, Policy
from jax_unmask.rollout.trajectory import Prompts, Records, RolloutSettings
from jax_unmask.runtime.mesh import by_rows


class Rows(NamedTuple):
    """State of the rows; L canvas positions."""

    canvas: Int[Array, "B L"]
    step_map: Int[Array, "B L"]
    confidence: Array
    step: Int[Array, " B"]
    block: Int[Array, " B"]
    step_in_block: Int[Array, " B"]
    post_steps: Int[Array, " B"]


class RunningBatch(NamedTuple):
    """The rows in the slots.

    Attributes:
        rows: where they stand.
        prompts: their prompts.
        keys: their random streams.
        positions: of prompt and canvas in the text, see `positions.default_positions`.
    """

    rows: Rows
    prompts: Prompts
    keys: Array
    positions: Int[Array, "S K"]


@dataclasses.dataclass(frozen=True)
class Mdp:
    """The steps of a rollout, but for the denoiser's forward.

    Attributes:
        denoiser: the dLLM, see `for_rollouts`.
        denoiser_params: its parameters.
        policy: chooses the positions to fill.
        settings: shape of the rollout.
    """

    denoiser: Denoiser
    denoiser_params: Params
    policy: Policy
    settings: RolloutSettings

    @property
    def is_block_causal(self) -> bool:
        """Blocks are counted from the start of the text."""
        return self.denoiser.config.attention_block is not None

    @property
    def scored(self) -> int:
        """Canvas positions that a forward without a cache scores, see `scored_positions`."""
        return scored_positions(self.policy, self.settings)

    @property
    def num_blocks(self) -> int:
        """Number of blocks of a canvas; a row in this block is done."""
        # Blocks that are counted from the start of the text may be cut at both ends of the canvas.
        return self.settings.gen_length // self.settings.block_length + self.is_block_causal

    @property
    def most_steps(self) -> int:
        """T, the most steps that a row can take."""
        return self.num_blocks * (self.settings.block_length + self.most_post_steps)

    @property
    def most_post_steps(self) -> int:
        """Steps on a block without masks at most: 0 where tokens are final."""
        return self.policy.needs.post_steps or 0

    @property
    def mask_id(self) -> int:
        """The mask token."""
        return self.denoiser.config.mask_token_id

    def first_rows(self, batch: int, present: Bool[Array, " B"] | None) -> Rows:
        """All-mask canvases; every counter at zero. Absent rows are done already."""
        count, length = jnp.zeros(batch, jnp.int32), self.settings.gen_length
        first = count
        if present is not None:
            first = jnp.where(present, 0, self.num_blocks).astype(jnp.int32)
        rows = Rows(
            canvas=jnp.full((batch, length), self.mask_id, jnp.int32),
            step_map=jnp.full((batch, length), -1, jnp.int32),
            confidence=jnp.zeros((batch, length), jnp.float32),
            step=count,
            block=first,
            step_in_block=count,
            post_steps=count,
        )
        return by_rows(rows)

    def taken_by_prompt(self, batch: RunningBatch) -> Int[Array, " S"]:
        """Positions of a row's first block that its prompt has taken."""
        if not self.is_block_causal:
            return jnp.zeros(batch.rows.block.shape, jnp.int32)
        length = batch.prompts.mask.sum(axis=-1, dtype=jnp.int32)
        return length % self.settings.block_length

    def block_of(self, batch: RunningBatch) -> Int[Array, "S L"]:
        """The block of each canvas position."""
        positions = jnp.arange(self.settings.gen_length)
        return (self.taken_by_prompt(batch)[:, None] + positions) // self.settings.block_length

    def block_start(self, batch: RunningBatch) -> Int[Array, " S"]:
        """First canvas position of the current block."""
        start = batch.rows.block * self.settings.block_length - self.taken_by_prompt(batch)
        return jnp.maximum(start, 0)

    def window_start(self, batch: RunningBatch) -> Int[Array, " S"]:
        """First of `scored` canvas positions that hold the current block.

        Blocks may be cut at both ends of the canvas; a window of their width is not.
        """
        return jnp.minimum(self.block_start(batch), self.settings.gen_length - self.scored)

    def step_keys(self, batch: RunningBatch) -> Array:
        """For each row a key of the denoiser's draw at this step and one of the policy's: [S, 2]"""
        keys = jax.vmap(jax.random.fold_in)(batch.keys, batch.rows.step)
        return jax.vmap(functools.partial(jax.random.split, num=2))(keys)

    def score(
        self,
        hidden: Float[Array, "S W D"],
        keys: Array,
        targets: Int[Array, "S W"] | None = None,
    ) -> Scores:
        """Scores of the denoiser for the policy, at the positions of the hidden states."""
        scores = score_candidates(
            self.denoiser,
            self.denoiser_params,
            hidden,
            keys,
            top_k=self.policy.needs.top_k,
            entropy=self.policy.needs.entropy,
            temperature=self.settings.temperature,
            vocab_chunk=self.settings.vocab_chunk,
            sampling=self.settings.sampling,
        )
        if targets is None:
            return scores
        return score_targets(self.denoiser, self.denoiser_params, hidden, scores, targets)

    def observation(
        self, batch: RunningBatch, scores: Scores, hidden: Float[Array, "S W D"] | None
    ) -> Observation:
        """The observation of the policy before a step.

        Args:
            batch: the rows.
            scores: of the whole canvas.
            hidden: states of the whole canvas, or of the current block, or None.
        """
        rows, settings = batch.rows, self.settings
        in_block = self.block_of(batch) == rows.block[:, None]
        masked = rows.canvas == self.mask_id
        start = self.block_start(batch)
        if hidden is not None and hidden.shape[1] != self.scored:
            hidden = window_of(hidden, self.scored, self.window_start(batch))
        return Observation(
            candidate=scores.candidate,
            confidence=scores.confidence,
            top_probs=scores.top_probs,
            masked=masked,
            legal=masked & in_block,
            step=rows.step,
            step_in_block=rows.step_in_block,
            block_start=start,
            entropy=scores.entropy,
            hidden=hidden,
            block_length=settings.block_length,
        )

    def act(
        self,
        batch: RunningBatch,
        params: Params,
        obs: Observation,
        keys: Array,
        acting: Bool[Array, " S"] | None = None,
    ) -> tuple[Rows, Records]:
        """One step of rows: the policy's choice and what becomes of it.

        Rows that are done stay as they are, and so do those that do not act (None: all do).
        """
        rows = batch.rows
        if acting is not None:
            obs = dataclasses.replace(obs, legal=obs.legal & acting[:, None])
        action = self.policy(params, obs, keys)
        in_block = self.block_of(batch) == rows.block[:, None]

        has_masks = obs.legal.any(axis=-1)
        active = has_masks
        if self.most_post_steps:
            active = rows.block < self.num_blocks
            active = active if acting is None else active & acting
        fill = action.fill & obs.legal
        changes = jnp.zeros_like(has_masks)
        if action.edit is not None:
            edit = action.edit & in_block & ~obs.masked & (obs.candidate != rows.canvas)
            edit &= active[:, None]
            fill, changes = fill | edit, edit.any(axis=-1)
        canvas = jnp.where(fill, obs.candidate, rows.canvas)
        used = rows.step_in_block + active
        post_steps = rows.post_steps + (active & ~has_masks)
        unfinished = ((canvas == self.mask_id) & in_block).any(axis=-1)
        edits_on = (post_steps < self.most_post_steps) & (has_masks | changes)
        block_length = self.settings.block_length
        next_block = active & jnp.where(unfinished, used >= block_length, ~edits_on)
        is_last = rows.block == self.block_of(batch)[:, -1]
        if self.settings.stop_ids:
            stops = jnp.isin(canvas, jnp.asarray(self.settings.stop_ids, jnp.int32))
            is_last |= stops.any(axis=-1)
        new = Rows(
            canvas=canvas,
            step_map=jnp.where(fill, rows.step[:, None], rows.step_map),
            confidence=jnp.where(fill, obs.confidence, rows.confidence),
            step=rows.step + active,
            block=jnp.where(next_block & is_last, self.num_blocks, rows.block + next_block),
            step_in_block=jnp.where(next_block, 0, used),
            post_steps=jnp.where(next_block, 0, post_steps),
        )
        return new, Records(obs, action, active)


def scored_positions(policy: Policy, settings: RolloutSettings) -> int:
    """Number of canvas positions that a forward without a cache scores: all or a block."""
    return settings.gen_length if policy.needs.canvas else settings.block_length


def for_rollouts(denoiser: Denoiser, block_length: int) -> Denoiser:
    """The denoiser with the device's best attention, and with the attention blocks of the rollout.

    Nothing is differentiated through a rollout, so it may use kernels that training cannot.
    """
    config = denoiser.config
    if config.attention_block is not None:
        config = dataclasses.replace(config, attention_block=block_length)
    if fuses(config.dtype, config.head_dim, config.attention_block is not None):
        config = dataclasses.replace(config, fused_attention=True)
    return denoiser if config is denoiser.config else denoiser.clone(config=config)
