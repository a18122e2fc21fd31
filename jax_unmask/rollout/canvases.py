"""Canvases from uniform noise to text (DiffusionGemma): one compiled program for a whole batch.

At each step every position of the canvas gets a drawn token; a policy chooses the positions that
accept theirs, and the others become random tokens again. A canvas ends when the best tokens have
stopped changing and are certain, and is then encoded for the next one.

It is not the masked models' loop (`rollout.loop`), where the masks that are left say what a policy
may fill and when blocks and rows end. Here no position is masked or final, each forward
also reads the expected embeddings of the last one, and a finished canvas takes a causal forward.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import struct
from jax.experimental import io_callback
from jaxtyping import Array, Bool, Float, Int

from jax_unmask.denoisers.cache import KeyValueCache
from jax_unmask.denoisers.diffusion_gemma.model import DiffusionGemma, empty_cache
from jax_unmask.denoisers.head import Scores, by_position, scores_of
from jax_unmask.denoisers.transformer import Params
from jax_unmask.policies.base import Observation, Policy
from jax_unmask.rollout.slots import where_rows
from jax_unmask.rollout.trajectory import Prompts, Watcher
from jax_unmask.settings import Settings, setting

# Logits [B, W, V] of so many entries exist at one time (float32: 128 MiB).
_LOGITS_AT_ONCE = 2**25


@dataclasses.dataclass(frozen=True)
class CanvasSettings(Settings):
    """Settings of the denoising of canvases (static). The defaults are the published ones."""

    canvases: int = setting(1, "Canvases at most, one after the other.", ge=1)
    steps: int = setting(48, "Forwards of a canvas at most.", ge=1)
    t_min: float = setting(0.4, "Temperature to which `t_max` falls linearly.", gt=0)
    t_max: float = setting(0.8, "Temperature at the start of a canvas.", gt=0)
    stability: int = setting(1, "Steps for which the best tokens have to stay the same.", ge=0)
    confidence: float = setting(
        0.005, "Mean entropy (nats) of the canvas below which it is certain.", gt=0
    )

    def check(self) -> None:
        self.require_at_most("t_min", "t_max")


@struct.dataclass
class Generated:
    """The generated canvases, and how they were generated.

    Attributes:
        tokens: all canvases; padding after the end of a text.
        step_map: index of the row's own forward since which each position has its token, -1 for
            padding.
        confidence: probability of the token at the canvas's last forward, 0 for padding.
        nfe: decoder forwards that the row needed.
        forwards: decoder forwards that were executed.
    """

    tokens: Int[Array, "B NC"]
    step_map: Int[Array, "B NC"]
    confidence: Float[Array, "B NC"]
    nfe: Int[Array, " B"]
    forwards: Int[Array, ""]


class _Scores(NamedTuple):
    """The network's view of each position of a canvas, at the step's temperature.

    The scores of a drawn token, the most probable one, and the expected embedding for
    self-conditioning.
    """

    drawn: Scores
    best: Int[Array, "B C"]
    soft: Float[Array, "B C D"]


class _Canvas(NamedTuple):
    """State of the rows within a canvas."""

    step: Int[Array, ""]
    current: Int[Array, "B C"]
    best: Int[Array, "B C"]
    since: Int[Array, "B C"]
    confidence: Float[Array, "B C"]
    soft: Float[Array, "B C D"]
    unchanged: Int[Array, " B"]
    done: Bool[Array, " B"]
    drawn: Int[Array, " B"]
    nfe: Int[Array, " B"]


class _Text(NamedTuple):
    """State of the rows between canvases."""

    number: Int[Array, ""]
    cache: KeyValueCache
    tokens: Int[Array, "B NC"]
    step_map: Int[Array, "B NC"]
    confidence: Float[Array, "B NC"]
    ended: Bool[Array, " B"]
    drawn: Int[Array, " B"]
    nfe: Int[Array, " B"]
    forwards: Int[Array, ""]


@functools.partial(jax.jit, static_argnames=("model", "policy", "settings", "watch"))
def generate(
    model: DiffusionGemma,
    params: Params,
    policy: Policy,
    policy_params: Params,
    prompts: Prompts,
    keys: Array,
    settings: CanvasSettings,
    watch: Watcher | None = None,
) -> Generated:
    """Generates canvases after prompts; a row's result does not depend on the other rows.

    Args:
        model, params: the network (static) and its parameters.
        policy, policy_params: its `fill` are the positions that accept their token (static), and
            its settings. The published one is `policies.EntropyBounded` with gamma = 0.1.
        prompts: left-padded prompts.
        keys: typed PRNG keys [B], see `rollout.row_keys`.
        settings: see there (static).
        watch: called with the best tokens after each forward, as in `rollout.rollout` (static).

    Raises:
        ValueError: prompt and canvases are longer than the model was made for, or the policy needs
            hidden states.
    """
    cfg = model.config
    batch, width = prompts.tokens.shape
    size, total = cfg.canvas_length, settings.canvases * cfg.canvas_length
    if width + total > cfg.max_length:
        raise ValueError(
            f"a prompt of {width} and {settings.canvases} canvases of {size} tokens are longer "
            f"than max_length={cfg.max_length}; shorten the prompt or lower canvases"
        )
    if policy.needs.hidden:
        raise ValueError(f"policy {policy} observes hidden states, which canvases do not offer")
    # Returns arrays or a cache, by method.
    run: Callable[..., Any] = functools.partial(model.apply, {"params": params})
    real = jnp.concatenate([prompts.mask.astype(bool), jnp.ones((batch, total), bool)], axis=1)

    def denoise(text: _Text, state: _Canvas) -> _Canvas:
        left = settings.steps - state.step
        temperature = settings.t_min + (settings.t_max - settings.t_min) * left / settings.steps
        place = width + text.number * size
        inputs = (state.current, text.cache, place, real, state.soft)
        hidden = run(*inputs, method="decode")
        active = ~state.done
        drawn = state.drawn + active

        def score(hidden: Array, keys: Array) -> _Scores:
            logits = run(hidden, method="logits") / temperature
            token, top_k = draw_tokens(keys, logits), policy.needs.top_k
            return _Scores(
                scores_of(logits, logits, token, top_k=top_k, entropy=True),
                best=logits.argmax(axis=-1).astype(jnp.int32),
                soft=run(logits, method="soft_embeddings"),
            )

        at_once = max(_LOGITS_AT_ONCE // (batch * cfg.vocab_size), 1)
        scores, best, soft = by_position(score, hidden, _fold(keys, drawn, 0), at_once)
        token, entropy = scores.candidate, cast(Array, scores.entropy)
        since = jnp.where(best == state.best, state.since, state.nfe[:, None])
        everywhere = jnp.ones(token.shape, bool)
        obs = Observation(
            candidate=token,
            confidence=scores.confidence,
            top_probs=scores.top_probs,
            masked=everywhere,
            legal=everywhere,
            step=state.nfe,
            step_in_block=jnp.full(batch, state.step),
            block_start=jnp.full(batch, text.number * size),
            entropy=entropy,
            block_length=size,
        )
        accepts = policy(policy_params, obs, _fold(keys, drawn, 1)).fill
        current = jnp.where(accepts, token, random_canvas(keys, drawn, size, cfg.vocab_size))
        unchanged = jnp.where((best == state.best).all(axis=-1), state.unchanged + 1, 0)
        certain = entropy.mean(axis=-1) < settings.confidence

        keep = functools.partial(where_rows, active)

        new = _Canvas(
            step=state.step + 1,
            current=keep(current, state.current),
            best=keep(best, state.best),
            since=keep(since, state.since),
            confidence=keep(scores.top_probs[..., 0], state.confidence),
            soft=keep(soft.astype(state.soft.dtype), state.soft),
            unchanged=keep(unchanged, state.unchanged),
            done=state.done | ((unchanged >= settings.stability) & certain),
            drawn=drawn,
            nfe=state.nfe + active,
        )
        if watch is not None:
            shown = _written(text, new.best, new.since, size)
            io_callback(watch, None, *shown, ordered=True)
        return new

    def write(text: _Text) -> _Text:
        drawn = text.drawn + ~text.ended
        first = _Canvas(
            step=jnp.zeros((), jnp.int32),
            current=random_canvas(keys, drawn, size, cfg.vocab_size),
            best=jnp.full((batch, size), -1, jnp.int32),
            since=jnp.full((batch, size), -1, jnp.int32),
            confidence=jnp.zeros((batch, size)),
            soft=jnp.zeros((batch, size, cfg.hidden_size), cfg.dtype),
            unchanged=jnp.zeros(batch, jnp.int32),
            done=text.ended,
            drawn=drawn,
            nfe=text.nfe,
        )
        last = jax.lax.while_loop(
            lambda state: (state.step < settings.steps) & ~state.done.all(),
            functools.partial(denoise, text),
            first,
        )
        ends = jnp.isin(last.best, jnp.asarray(cfg.eos_token_ids))
        behind = text.ended[:, None] | (jnp.cumsum(ends, axis=-1) - ends > 0)
        canvas = jnp.where(behind, cfg.pad_token_id, last.best)
        tokens, step_map = _written(text, canvas, jnp.where(behind, -1, last.since), size)
        confidence = jnp.where(behind, 0.0, last.confidence)
        place, ended = text.number * size, text.ended | ends.any(axis=-1)

        def encode(cache: KeyValueCache) -> KeyValueCache:
            inputs = (canvas, cache, width + place, real)
            return run(*inputs, method="encode")[1]

        goes_on = (text.number + 1 < settings.canvases) & ~ended.all()
        return _Text(
            number=text.number + 1,
            cache=jax.lax.cond(goes_on, encode, lambda cache: cache, text.cache),
            tokens=tokens,
            step_map=step_map,
            confidence=_at(text.confidence, confidence, place),
            ended=ended,
            drawn=last.drawn,
            nfe=last.nfe,
            forwards=text.forwards + last.step,
        )

    _, cache = run(prompts.tokens, empty_cache(cfg, batch, width + total), 0, real, method="encode")
    zeros = jnp.zeros(batch, jnp.int32)
    present = jnp.ones(batch, bool) if prompts.present is None else prompts.present
    text = _Text(
        number=jnp.zeros((), jnp.int32),
        cache=cache,
        tokens=jnp.full((batch, total), cfg.pad_token_id, jnp.int32),
        step_map=jnp.full((batch, total), -1, jnp.int32),
        confidence=jnp.zeros((batch, total)),
        ended=~present,
        drawn=zeros - 1,
        nfe=zeros,
        forwards=jnp.zeros((), jnp.int32),
    )
    text = jax.lax.while_loop(
        lambda text: (text.number < settings.canvases) & ~text.ended.all(), write, text
    )
    return Generated(text.tokens, text.step_map, text.confidence, text.nfe, text.forwards)


def _written(
    text: _Text, canvas: Int[Array, "B C"], since: Int[Array, "B C"], size: int
) -> tuple[Int[Array, "B NC"], Int[Array, "B NC"]]:
    """Tokens and step map of the whole text, with those of the current canvas."""
    place = text.number * size
    return _at(text.tokens, canvas, place), _at(text.step_map, since, place)


def _at(whole: Array, part: Array, place: Int[Array, ""]) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(whole, part, place, axis=1)


def random_canvas(
    keys: Array, count: Int[Array, " B"], length: int, vocab_size: int
) -> Int[Array, "B C"]:
    """Random tokens: the `count`-th canvas of each row (from 0)."""

    def of_row(key: Array) -> Int[Array, " C"]:
        return jax.random.randint(key, (length,), 0, vocab_size, jnp.int32)

    return jax.vmap(of_row)(_fold(keys, count, 2))


def draw_tokens(keys: Array, logits: Float[Array, "B W V"]) -> Int[Array, "B W"]:
    """A token for each position, drawn from softmax(logits) with the position's key [B, W]."""
    draw = jax.vmap(jax.vmap(jax.random.categorical))
    return draw(keys, logits).astype(jnp.int32)


def _fold(keys: Array, count: Int[Array, " B"], stream: int) -> Array:
    """Each row's key for its count of steps, in one of three streams."""
    return jax.vmap(jax.random.fold_in)(keys, 3 * count + stream)
