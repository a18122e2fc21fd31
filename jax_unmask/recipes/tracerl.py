"""Recipe "tracerl": a denoiser learns by reinforcement from its own trajectories."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jax_unmask import denoisers, policies
from jax_unmask.denoisers.sharding import RULES
from jax_unmask.environment.bundle import Bundle, build_cache, load_bundle
from jax_unmask.learners.advantages import (
    chunk_rewards,
    group_advantages,
    group_z_scores,
    kept_groups,
)
from jax_unmask.learners.state import TrainState
from jax_unmask.learners.states.batch import describe
from jax_unmask.learners.states.forward import AttentionBlocks, in_blocks
from jax_unmask.learners.states.responses import Responses
from jax_unmask.learners.states.surrogates import SurrogateSettings
from jax_unmask.learners.tracerl import TraceLearner, ValueSettings
from jax_unmask.recipes.base import (
    Metrics,
    build_optimizer,
    check_fits,
    row_flops,
    training_batches,
)
from jax_unmask.recipes.groups import Chosen, choose_groups, text_lengths
from jax_unmask.recipes.process import build_process_rewards
from jax_unmask.recipes.rollouts import Rollouts
from jax_unmask.rollout import Prompts, RolloutSettings, scored_positions
from jax_unmask.runtime.config import ConfigError
from jax_unmask.runtime.progress import Timer
from jax_unmask.tasks import data, rewards

_SURROGATE = [field.name for field in dataclasses.fields(SurrogateSettings)]
SURROGATES = ("trace", "random_masking", "coupled", "diffu_grpo", "espo")

# Streams of a step's key: the learner takes 0 and 1, the rounds of rollouts those from here on.
_FIRST_ROUND = 2
# Of what is known about a rollout, that which is known of each prompt instead of each row.
_OF_PROMPTS = ("over_budget", "alike")


def build_learner(
    config: ConfigDict, denoiser: denoisers.Denoiser, end_ids: tuple[int, ...]
) -> TraceLearner:
    """What updates the denoiser, and the value model if there is one.

    Args:
        config: a validated config.
        denoiser: the denoiser.
        end_ids: tokens that end a text.

    Raises:
        ValueError: a value makes no sense; the message names it.
    """
    learner, value = config.learner, None
    steps = learner.passes * learner.minibatches
    if config.value.enabled:
        own = ConfigDict(config.to_dict())
        own.optimizer.lr = config.value.lr
        value = ValueSettings(
            optimizer=build_optimizer(own, steps),
            gamma=config.value.gamma,
            lam=config.value.lam,
            clip=config.value.clip,
        )
    blocks = None
    if denoiser.config.attention_block is not None:
        blocks = AttentionBlocks(learner.block_length or config.rollout.block_length)
    elif learner.block_length is not None:
        raise ConfigError(
            "learner.block_length",
            learner.block_length,
            f"the denoiser, of family {denoiser.config.family!r}, has full attention",
            "Leave it out; rollout.block_length says how responses are written",
        )
    return TraceLearner(
        denoiser=denoiser.clone(remat=config.model.remat),
        optimizer=build_optimizer(config, steps),
        surrogate=SurrogateSettings(**{name: learner[name] for name in _SURROGATE}).build(),
        blocks=blocks,
        value=value,
        clip=learner.clip,
        beta=learner.beta,
        reference_beta=learner.reference_beta,
        kl=learner.kl,
        normaliser=learner.normaliser,
        ratio_limit=learner.ratio_limit,
        num_pads=learner.num_pads,
        end_ids=end_ids,
        temperature=learner.temperature,
        passes=learner.passes,
        minibatches=learner.minibatches,
        chunk_size=learner.chunk_size,
        positions_per_chunk=learner.positions_per_chunk,
    )


def build_settings(
    config: ConfigDict,
    denoiser: denoisers.DenoiserConfig,
    end_ids: tuple[int, ...],
    slot_groups: int = 1,
) -> RolloutSettings:
    """The rollouts of a validated config.

    Raises:
        ConfigError: the cache does not fit the denoiser.
    """
    return RolloutSettings(
        gen_length=config.rollout.gen_length,
        block_length=config.rollout.block_length,
        temperature=config.rollout.temperature,
        vocab_chunk=config.rollout.vocab_chunk,
        slots=config.rollout.slots,
        slot_groups=slot_groups,
        sampling=denoisers.families.sampling(
            denoiser.family, config.rollout.top_k, config.rollout.top_p
        ),
        stop_ids=end_ids if config.rollout.stop_at_end else (),
        cache=build_cache(config.rollout.cache, "rollout.cache", denoiser),
    )


class TraceRl:
    """TraceRL and the methods it is compared with (Wang et al., arXiv 2509.06949).

    Args:
        config: see `jax_unmask.config.tracerl`; already validated.
        workdir: receives `model/` at the end, unless `config.export` names another directory.
    """

    shown: tuple[str, ...] = ("accuracy", "tokens_per_step", "groups_kept")

    def __init__(self, config: ConfigDict, workdir: pathlib.Path) -> None:
        self._config = config
        self._directory = pathlib.Path(config.export or workdir / "model")
        self._group = config.rollout.group_size
        self._lora = config.lora.rank > 0
        self._policy, self._policy_params = policies.parse_policy(config.rollout.policy)
        self._reward = rewards.REWARDS[config.reward.kind]
        self._advantages = {"z_score": group_z_scores, "centred": group_advantages}[
            config.reward.advantage
        ]
        self._bundle = load_bundle(config)  # Last: the weights take longest.
        self._placement = self._bundle.placement
        self._rollouts = Rollouts.of(config, self._bundle)
        check_fits(
            self._bundle.denoiser.config, config.task.prompt_length, config.rollout.gen_length
        )
        self._ends = self._bundle.tokenizer.stop_ids
        self._settings = build_settings(
            config, self._bundle.denoiser.config, self._ends, self._placement.parts
        )
        self._learner = build_learner(config, self._bundle.denoiser, self._ends)
        if self._lora:
            self._check_targets()
        self._process = build_process_rewards(config, self._bundle)
        self._batches: data.BatchIterator | None = None

    def init(self) -> TrainState:
        key, lora, adapters = jax.random.key(self._config.seed + 1), self._config.lora, None
        denoiser = self._bundle.denoiser.config
        if lora.rank:
            adapters = denoisers.init_adapters(
                denoiser, jax.random.fold_in(key, 1), lora.rank, lora.targets, lora.scale
            )
        make, params = self._learner.init, self._bundle.params
        return self._placement.make(make, params, key, adapters, rules=RULES)

    def _check_targets(self) -> None:
        """Refuses adapters of what the denoiser does not have."""
        lora, denoiser = self._config.lora, self._bundle.denoiser.config
        try:
            jax.eval_shape(
                lambda key: denoisers.init_adapters(denoiser, key, lora.rank, lora.targets),
                jax.random.key(0),
            )
        except ValueError as error:
            remedy = "Name some of these, or give () for all"
            raise ConfigError("lora.targets", lora.targets, str(error), remedy) from error

    def _whole(self, state: TrainState) -> Any:
        """All parameters of the denoiser as it is now; with adapters beside the frozen ones."""
        params = state.params["denoiser"]
        return denoisers.with_adapters(self._bundle.params, params) if self._lora else params

    def data(self) -> data.BatchIterator:
        config, bundle = self._config, self._bundle
        settings = data.BatchSettings(
            batch_size=config.rollout.prompts_per_step,
            prompt_length=config.task.prompt_length,
            seed=config.seed,
            # A prompt over its budget must not end a run: `_roll_out` decides what becomes of it.
            truncate=True,
        )
        self._batches = training_batches(bundle.task, bundle.tokenizer, settings, self._placement)
        return self._batches

    def step(self, state: TrainState, batch: Any, timer: Timer) -> tuple[TrainState, Metrics]:
        config, key = self._config, state.step_key()
        wanted, rounds = config.rollout.prompts_per_step, []
        for number in range(config.filter.rounds):
            if number:
                assert self._batches is not None  # The loop took `batch` from it.
                # Nothing is carried over to the next step, so its position is all there is to save.
                batch = next(self._batches)
            round_key = jax.random.fold_in(key, _FIRST_ROUND + number)
            rounds.append(self._roll_out(self._whole(state), batch, round_key, timer))
            if sum(int(each["kept"].sum()) for each in rounds) >= wanted:
                break
        rolled = {name: np.concatenate([each[name] for each in rounds]) for name in rounds[0]}
        chosen = choose_groups(rolled.pop("kept"), wanted)
        taken = self._take(rolled, chosen)
        judged: Metrics = {}
        if self._process is not None:
            with timer.measure("process"):
                found = self._process(
                    list(taken["example"]),
                    taken["tokens"],
                    taken["length"],
                    taken["correct"] == 1,
                    taken["kept"],
                    self._group,
                )
            taken["chunks"] = found.scores
            judged = {"process_score": found.mean}
        with timer.measure("update"):
            state, metrics = self._update(state, taken)
        filled = rolled["step_map"] >= 0
        return state, {
            "reward": np.mean(rolled["reward"]),
            "accuracy": np.mean(rolled["correct"]),
            "nfe": np.mean(rolled["nfe"]),
            "response_length": np.mean(rolled["length"]),
            "tokens_per_step": np.sum(rolled["length"]) / np.sum(rolled["nfe"]),
            "without_end": np.mean(rolled["length"] == filled.shape[1]),
            "useful_forwards": np.mean(rolled["useful"]),
            "unfinished": np.mean(~filled.all(axis=1)),
            "prompts_over_budget": np.mean(rolled["over_budget"]),
            "groups_alike": np.mean(rolled["alike"]),
            "groups_kept": chosen.kept.sum() / wanted,
            "rounds": len(rounds),
            **judged,
            **metrics,
        }

    def flops(self, metrics: Mapping[str, float]) -> float:
        config, denoiser = self._config, self._bundle.denoiser.config
        rows = metrics["rounds"] * config.rollout.prompts_per_step * self._group
        models = 2 if config.value.enabled else 1  # A value model is as large.
        trained = 3 * models * config.learner.passes * metrics["states"]
        scored = scored_positions(self._policy, self._settings)
        forwards = rows * metrics["nfe"] * row_flops(config, denoiser, scored)
        return forwards + trained * row_flops(config, denoiser)

    def finish(self, state: TrainState, workdir: pathlib.Path) -> Bundle:
        bundle, params = self._bundle, state.params["denoiser"]
        if self._lora:
            params = denoisers.merge_adapters(bundle.params, params)
        denoiser = in_blocks(bundle.denoiser, self._learner.blocks)
        denoisers.save_pretrained(self._directory, denoiser, params, bundle.tokenizer)
        return dataclasses.replace(bundle, denoiser=denoiser, params=params, name="")

    def _roll_out(self, params: Any, batch: Any, key: Any, timer: Timer) -> dict[str, np.ndarray]:
        """Responses to a batch of prompts, `group_size` each, and what they are worth.

        Returns:
            Per row `example`, `prompt`, `prompt_mask`, `tokens`, `step_map`, `nfe`, `length`
            (filled tokens before the first end, and that end), `correct`, `reward` and `useful`
            (part of the executed forwards that rows needed, the same for all of them); per prompt
            `over_budget`, `alike` (all of its rewards are equal) and `kept`. Of all processes, but
            for `example`.
        """
        config, bundle = self._config, self._bundle
        with timer.measure("rollout"):
            parts = self._rollouts.start(
                params,
                self._policy,
                self._policy_params,
                batch.prompts,
                self._group,
                key,
                self._settings,
            )
            # While the device is busy.
            lengths = [
                len(bundle.tokenizer.encode_prompt(bundle.task.prompt(example)))
                for example in batch.examples
            ]
            fetched = self._rollouts.fetch(parts, batch.examples, self._group)
            executed = sum(part.executed_cost for part in parts)
            useful = float(sum(jnp.sum(part.cost) for part in parts) / executed)
        with timer.measure("reward"):
            correct = fetched.scores()
        tokens, step_map, nfe = fetched.tokens, fetched.step_map, fetched.nfe
        reward = self._reward(correct, nfe, self._settings.gen_length, config.reward.alpha)
        reward = np.asarray(reward, np.float32)
        over_budget = np.asarray(lengths) > config.task.prompt_length
        grouped = reward.reshape(-1, self._group)
        alike = grouped.max(axis=1) == grouped.min(axis=1)
        right = correct.reshape(-1, self._group).mean(axis=1)
        kept = kept_groups(right, config.filter.low, config.filter.high) & ~alike
        if not config.task.truncate_prompts:
            kept &= ~over_budget
        # Which groups are trained is decided over all of them, so all processes know all rows.
        rolled = self._placement.gather(
            {
                "prompt": np.repeat(batch.prompts.tokens, self._group, axis=0),
                "prompt_mask": np.repeat(batch.prompts.mask, self._group, axis=0),
                "tokens": tokens,
                "step_map": step_map,
                "nfe": nfe,
                "length": text_lengths(tokens, step_map, self._ends),
                "correct": correct,
                "reward": reward,
                "over_budget": over_budget,
                "alike": alike,
                "kept": kept,
                "useful": np.full(len(tokens), useful, np.float32),
            }
        )
        if self._process is not None:  # Problems are no arrays: each process knows its own.
            own = self._placement.feed * len(tokens) + np.arange(len(tokens))
            repeated = [example for example in batch.examples for _ in range(self._group)]
            rolled["example"] = np.full(len(rolled["tokens"]), None, dtype=object)
            rolled["example"][own] = np.fromiter(repeated, dtype=object, count=len(own))
        return rolled

    def _take(self, rolled: dict[str, np.ndarray], chosen: Chosen) -> dict[str, np.ndarray]:
        """The rows of the chosen groups, and which of them are `kept`."""
        rows = (chosen.group[:, None] * self._group + np.arange(self._group)).reshape(-1)
        taken = {name: leaf[rows] for name, leaf in rolled.items() if name not in _OF_PROMPTS}
        return taken | {"kept": np.repeat(chosen.kept, self._group)}

    def _update(self, state: TrainState, taken: dict[str, Any]) -> tuple[TrainState, Metrics]:
        """One update with the chosen rows."""
        # Small enough to be everywhere: a device takes what it works on out of all rows.
        responses = self._placement.everywhere(
            Responses(
                prompts=Prompts(taken["prompt"], taken["prompt_mask"]),
                tokens=taken["tokens"],
                step_map=taken["step_map"],
            )
        )
        if "chunks" in taken:
            canvas = describe(self._learner, responses)
            assert self._process is not None
            advantages = chunk_rewards(
                jnp.asarray(taken["chunks"]),
                jnp.asarray(taken["length"]),
                canvas.time,
                canvas.trainable,
                self._process.chunk_length,
            )
        else:
            advantages = self._advantages(jnp.asarray(taken["reward"]), self._group).advantages
        reference = self._bundle.params if self._config.learner.reference_beta > 0 else None
        kept, advantages = self._placement.everywhere((taken["kept"], advantages))
        base = self._bundle.params if self._lora else None
        with self._placement.active():
            state, metrics = self._learner.update(
                state, responses, advantages, kept, reference, base
            )
        jax.block_until_ready(state.params)
        return state, metrics
