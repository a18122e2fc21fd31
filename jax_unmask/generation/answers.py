"""Answers: prompts are rolled out, decoded and described."""

import dataclasses
import logging
import pathlib
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from jax_unmask import denoisers, notation, policies
from jax_unmask.denoisers import (
    Denoiser,
    DenoiserConfig,
    Params,
    Tokenizer,
    diffusion_gemma,
    families,
    hub,
    load_tokenizer,
)
from jax_unmask.denoisers.quantization import check_kind
from jax_unmask.denoisers.sampling import Sampling
from jax_unmask.environment.bundle import load_model, read_model
from jax_unmask.evaluation.viewing import record
from jax_unmask.generation.decoding import Decoding, Prompt, Step
from jax_unmask.policies.base import Policy, strong
from jax_unmask.policies.calibration import load_calibrations
from jax_unmask.policies.checkpoint import MadeFor, made_for
from jax_unmask.prompts import Prompts
from jax_unmask.report import page, traces
from jax_unmask.rollout import (
    RolloutSettings,
    Trajectory,
    Watcher,
    canvases,
    check_rollout,
    parse_cache,
    rollout,
)
from jax_unmask.rollout.canvases import CanvasSettings, Generated
from jax_unmask.rollout.continuous import ContinuousRollout, answer_keys
from jax_unmask.rollout.trajectory import check_finite
from jax_unmask.settings import SettingError, naming
from jax_unmask.shipped import shipped_lengths, shipped_models

DEFAULT_LENGTH = 128
UNIVERSAL_POLICY = "learned:universal"
"""The default for denoisers that it was trained on, see `default_policy`."""
DEFAULT_CANVAS_POLICY = "entropy_bounded:gamma=0.1"
_SHAPE = ("task", "gen_length", "block_length", "distribution")
logger = logging.getLogger(__name__)
# Decoding that means nothing for DiffusionGemma.
_MASKED_ONLY = ("block_length", "temperature", "top_k", "top_p", "quantization", "cache")


@dataclasses.dataclass(frozen=True)
class Answer:
    """The answer to one prompt.

    In a notebook it shows itself, step by step. `probability` is the policy's, of filling each
    position at each step, if it was recorded and the policy has one.
    """

    prompt: Prompt
    prompt_tokens: int
    trajectory: Trajectory | Generated  # One row, NumPy arrays.
    text: str  # Up to its end.
    settings: RolloutSettings
    policy: str  # In the notation of `parse_policy`, with the settings of this answer.
    tokenizer: Tokenizer
    probability: Float[Array, "T 1 L"] | None = None

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= 60 else f"{self.text[:60]}..."
        return f"Answer({text!r}, nfe={self.nfe})"

    @property
    def nfe(self) -> int:
        """Forwards that it took."""
        return int(self.trajectory.nfe[0])

    def record(self) -> dict[str, Any]:
        """The answer as JSON can hold it, position by position."""
        trajectory, settings = self.trajectory, self.settings
        confidence = np.asarray(trajectory.confidence[0], np.float64)
        described = {
            "text": self.text,
            "tokens": trajectory.tokens[0].tolist(),
            "step_map": trajectory.step_map[0].tolist(),
            "confidence": [float(f"{value:.6g}") for value in confidence],
            "nfe": self.nfe,
            "prompt": self.prompt,
            "prompt_tokens": self.prompt_tokens,
            "gen_length": settings.gen_length,
            "block_length": settings.block_length,
            "temperature": settings.temperature,
            "top_k": settings.sampling.top_k,
            "top_p": settings.sampling.top_p,
        }
        if isinstance(trajectory, Trajectory):
            described["cache"] = "none" if settings.cache is None else str(settings.cache)
            described["cost"] = float(trajectory.cost[0])
        return described

    def view(
        self, name: str = "answer", score: float | None = None, drawing: str = ""
    ) -> dict[str, Any]:
        """The problem that the viewer of `report.page` steps through."""
        method, _, settings = self.policy.partition(":")
        trajectory = self.trajectory
        if isinstance(trajectory, Generated):
            raise ValueError("canvases that begin as random tokens have no view, step by step")
        trace = traces.trace(
            trajectory,
            0,
            self.tokenizer.pieces,
            method=method,
            settings=settings,
            text=self.text,
            block_length=self.settings.block_length,
            stop_ids=self.tokenizer.stop_ids,
            score=score,
            probability=self.probability,
            drawing=drawing,
        )
        return traces.problem(name, self.prompt, [trace])

    def _repr_html_(self) -> str | None:
        """The viewer, for notebooks."""
        return None if isinstance(self.trajectory, Generated) else _framed([self.view()], self.text)


class Answers(list[Answer]):
    """Answers in the order of their prompts; a notebook shows all in one viewer."""

    def _repr_html_(self) -> str | None:
        if not self or any(isinstance(each.trajectory, Generated) for each in self):
            return None
        views = [each.view(f"answer {number + 1}") for number, each in enumerate(self)]
        return _framed(views, "\n\n".join(each.text for each in self))


def _framed(problems: Sequence[Mapping[str, Any]], text: str) -> str:
    return page.framed(page.whole(title="Unmasking", problems=problems, text=text))


@dataclasses.dataclass
class MaskedWriter:
    """A masked denoiser that answers prompts, with a policy in the notation of `parse_policy`.

    `thinking` is for chat templates that know reasoning, see `Tokenizer.encode_prompt`. `name` is
    that of the denoiser.
    """

    denoiser: Denoiser
    params: Params
    tokenizer: Tokenizer
    policy: str
    settings: RolloutSettings
    thinking: bool | None = None
    name: str = ""

    def __post_init__(self) -> None:
        self._policy = policies.parse_policy(self.policy, environment=self.environment)
        self._running: dict[Any, ContinuousRollout] = {}

    @property
    def environment(self) -> dict[str, str | int]:
        """Denoiser and canvas of the policy, see `policies.parse_policy`."""
        return {"denoiser": self.name, **self.settings.environment}

    @property
    def block_length(self) -> int:
        """Positions of a block."""
        return self.settings.block_length

    @property
    def room(self) -> int:
        """Tokens of the longest prompt."""
        return self.denoiser.config.max_length - self.settings.gen_length

    def adjusted(self, settings: Mapping[str, Any]) -> tuple[Policy, Any]:
        """The policy and its params, with other settings."""
        environment = self.environment
        return policies.adjusted(self.policy, *self._policy, settings, environment=environment)

    def roll_out(
        self,
        encoded: Sequence[Sequence[int]],
        width: int,
        keys: Array,
        settings: Mapping[str, Any],
        *,
        with_records: bool = False,
        watch: Watcher | None = None,
    ) -> tuple[Trajectory, Float[Array, "T B L"] | None]:
        """A batch of prompts, rolled out; NumPy arrays. Only those that have a key exist."""
        policy, params = self.adjusted(settings)
        prompts = _padded(self.tokenizer, encoded, width)
        arguments = (
            self.denoiser,
            self.params,
            policy,
            strong(params),
            prompts,
            keys,
            self.settings,
        )
        if with_records:
            return record(*arguments, watch)
        return jax.device_get(rollout(*arguments, watch)), None

    def steps(
        self, prompt: Sequence[int], width: int, seed: int, turn: int, settings: Mapping[str, Any]
    ) -> Iterator[Step]:
        """The canvas of one prompt after each of its forwards."""
        policy, params = self.adjusted(settings)
        key = policy, width
        if key not in self._running:
            self._running[key] = ContinuousRollout(
                self.denoiser,
                self.params,
                policy,
                params,
                self.settings,
                prompt_length=width,
                slots=1,
            )
        running = self._running[key]
        numbers = {name: params[name] for name in running.settings}
        running.put(0, prompt, seed=seed, turn=turn, settings=numbers)
        done = 0
        try:
            while True:
                (place,) = running.progress(running.advance(1))
                check_finite(place.confidence[None], place.step_map[None])
                if place.nfe > done:
                    done = place.nfe
                    yield Step(
                        done,
                        place.tokens.tolist(),
                        place.step_map.tolist(),
                        self.tokenizer.pieces(place.tokens.tolist()),
                        self.tokenizer.decode(place.tokens),
                    )
                if place.is_done:
                    return
        finally:
            running.stop(0)

    def answer(
        self, trajectory: Any, row: int, prompt: Prompt, count: int, policy: str, odds: Any
    ) -> Answer:
        """The answer of a row."""
        one = trajectory.row(row)
        text = self.tokenizer.decode(np.asarray(one.tokens[0]))
        odds = None if odds is None else odds[:, row : row + 1]
        return Answer(prompt, count, one, text, self.settings, policy, self.tokenizer, odds)


@dataclasses.dataclass
class CanvasWriter:
    """A DiffusionGemma, whose canvases start as random tokens; used as `MaskedWriter`."""

    loaded: diffusion_gemma.Checkpoint
    tokenizer: Tokenizer
    policy: str
    settings: CanvasSettings
    thinking: bool | None = None

    def __post_init__(self) -> None:
        self._policy = policies.parse_policy(self.policy)
        self._shown: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._streams = threading.Lock()  # One at a time: they share a program, which has a queue.

    @property
    def block_length(self) -> int:
        """Positions of a canvas."""
        return self.loaded.model.config.canvas_length

    @property
    def room(self) -> int:
        """Tokens of the longest prompt."""
        config = self.loaded.model.config
        return config.max_length - self.settings.canvases * config.canvas_length

    def roll_out(
        self,
        encoded: Sequence[Sequence[int]],
        width: int,
        keys: Array,
        settings: Mapping[str, Any],
        *,
        with_records: bool = False,
        watch: Watcher | None = None,
    ) -> tuple[Generated, None]:
        """A batch of prompts, rolled out; see `MaskedWriter.roll_out`."""
        if with_records:
            raise ValueError("record is for masked models; leave it out")
        policy, params = policies.adjusted(self.policy, *self._policy, settings)
        prompts = _padded(self.tokenizer, encoded, width)
        arguments = (self.loaded.model, self.loaded.params, policy, params, prompts, keys)
        return jax.device_get(canvases.generate(*arguments, self.settings, watch)), None

    def steps(
        self, prompt: Sequence[int], width: int, seed: int, turn: int, settings: Mapping[str, Any]
    ) -> Iterator[Step]:
        """The best tokens after each forward; a stream that is left early is written to its end."""
        keys = answer_keys(np.asarray([seed], np.uint32), np.asarray([turn], np.int32))
        with self._streams, ThreadPoolExecutor(1) as pool:
            shown = self._shown = queue.SimpleQueue()
            arguments = [prompt], width, keys, settings
            writing = pool.submit(self.roll_out, *arguments, watch=self._show)
            writing.add_done_callback(lambda _: shown.put(None))
            number, last = 0, None
            while (canvas := shown.get()) is not None:
                number += 1
                last = self._step(number, *canvas)
                yield last
            done, _ = writing.result()
        check_finite(done.confidence, done.step_map)
        final = self._step(int(done.nfe[0]), np.asarray(done.tokens), np.asarray(done.step_map))
        if final != last:
            yield final

    def _show(self, tokens: np.ndarray, step_map: np.ndarray) -> None:
        self._shown.put((np.asarray(tokens), np.asarray(step_map)))

    def _step(self, number: int, tokens: np.ndarray, step_map: np.ndarray) -> Step:
        row = tokens[0].tolist()
        pieces, text = self.tokenizer.pieces(row), self.tokenizer.decode(tokens[0])
        return Step(number, row, step_map[0].tolist(), pieces, text)

    def answer(
        self, trajectory: Any, row: int, prompt: Prompt, count: int, policy: str, odds: Any
    ) -> Answer:
        """The answer in a row of a trajectory, see `MaskedWriter.answer`."""
        del odds
        one = jax.tree.map(lambda leaf: leaf[row : row + 1] if leaf.ndim else leaf, trajectory)
        text = self.tokenizer.decode(np.asarray(one.tokens[0]))
        length = self.settings.canvases * self.block_length
        shape = RolloutSettings(gen_length=length, block_length=self.block_length)
        return Answer(prompt, count, one, text, shape, policy, self.tokenizer)


Writer = MaskedWriter | CanvasWriter


def load(model: str, policy: str | None, decoding: Decoding) -> Writer:
    """The model, loaded as asked.

    Raises:
        ValueError: settings that do not fit each other (before anything is loaded), or the model.
        FileNotFoundError: a file of the model is missing.
    """
    check(model, policy, decoding)
    directory = hub.local_directory(model)
    if diffusion_gemma.is_model(directory):
        return _load_canvas(model, directory, policy, decoding)
    denoiser, params, tokenizer = load_model(
        model, dtype=decoding.dtype, param_dtype=decoding.dtype, quantization=decoding.quantization
    )
    shape = masked_settings(model, decoding, denoiser, tokenizer)
    named = policy or policies.DEFAULT
    thinking = decoding.thinking
    return MaskedWriter(denoiser, params, tokenizer, named, shape, thinking, name=model)


def default_policy(model: str) -> str | None:
    """The policy of a model where none is named: None leaves it to `load`."""
    is_known = model in {each.model for each in trained_for(UNIVERSAL_POLICY)}
    return UNIVERSAL_POLICY if is_known else None


def fitted(
    model: str | None, policy: str | None, decoding: Decoding
) -> tuple[str, str | None, Decoding]:
    """Model, policy and decoding, with defaults where they leave something open.

    The model and the canvas are what the policy was trained for. Warns where those that are given
    differ from it: a policy acts as its tables say only where it was trained.

    Raises:
        ValueError: neither names a model.
    """
    trained = trained_for(policy)
    if model is None and len({each.model for each in trained}) == 1:
        model = trained[0].model
    if model is None:
        raise ValueError(
            f"--model is missing; give one of {', '.join(shipped_models())}, a directory or a hub "
            "name (or a --policy that names its model)"
        )
    is_given, policy = policy is not None, policy or default_policy(model)
    trained = trained_for(policy)
    here = [each for each in trained if each.model == model]
    if len(trained) > 1 and not here:
        models = ", ".join(dict.fromkeys(each.model for each in trained))
        logger.warning("The policy was trained for %s (here %s).", models, model)
    elif trained:
        made = (here or trained)[0]
        if here or model not in shipped_models():
            length = made.gen_length if decoding.gen_length is None else decoding.gen_length
            block = length if made.block_length == made.gen_length else made.block_length
            if decoding.block_length is None and block and length % block == 0:
                decoding = dataclasses.replace(decoding, block_length=block)
            decoding = dataclasses.replace(decoding, gen_length=length)
        shape = masked_settings(model, decoding)
        given = dict(notation.parse(str(policy)).settings)
        different = [
            f"{name} {theirs} (here {ours})"
            for name, theirs, ours in (
                ("model", made.model, model),
                ("gen_length", made.gen_length, shape.gen_length),
                ("block_length", made.block_length, shape.block_length),
                ("distribution", made.distribution, given.get("distribution", made.distribution)),
            )
            if theirs != ours
        ]
        if different and is_given:
            logger.warning("The policy was trained for %s.", ", ".join(different))
    return model, policy, decoding


def trained_for(text: str | None) -> tuple[MadeFor, ...]:
    """The places that a learned policy was trained for, or calibrated for where nfe is given."""
    if text is None:
        return ()
    with naming("policy", text):
        return _trained_for(text)


def _trained_for(text: str) -> tuple[MadeFor, ...]:
    spec = notation.parse(text)
    if spec.name != "learned" or not spec.target:
        return ()
    directory, given = policies.policy_directory(spec.target), dict(spec.settings)
    if "nfe" not in given:
        return made_for(directory)
    known, name = load_calibrations(directory), given.get("calibration")
    chosen = [each.environment for each in known.values() if name in (None, each.name)]
    names = {"model": "denoiser"} | {name: name for name in _SHAPE}
    return tuple(
        MadeFor(**{ours: each[theirs] for ours, theirs in names.items()})  # type: ignore[arg-type]
        for each in chosen
        if all(theirs in each for theirs in names.values())
    )


Read = tuple[DenoiserConfig, Tokenizer]
"""The files of a masked model but for its weights."""


def read(model: str) -> Read | None:
    """Shape and tokenizer of a model whose weights are there; None of a DiffusionGemma.

    Raises:
        SettingError: a file is missing or damaged, or they do not fit together.
    """
    with naming("model", model):
        if diffusion_gemma.is_model(hub.local_directory(model, weights=False)):
            return None
        found = read_model(model)
        denoisers.check_weights(model)
    return found


def check(model: str, policy: str | None, decoding: Decoding, known: Read | None = None) -> None:
    """Raises for all mistakes that show before the model is loaded; `known` is what `read` gave."""
    shape, named = masked_settings(model, decoding), policy or policies.DEFAULT
    with naming("policy", named):
        environment = {"denoiser": model, **shape.environment}
        parsed = policies.parse_policy(named, environment=environment)
    if known := known or read(model):
        config, tokenizer = known
        settings = masked_settings(model, decoding, Denoiser(config), tokenizer)
        check_rollout(named, *parsed, config, settings)
        if decoding.quantization is not None:
            check_kind(decoding.quantization)


def check_prompt(known: Read, model: str, decoding: Decoding, prompt: Prompt) -> None:
    """Raises a ValueError for a prompt that `encode` would refuse, before the model is loaded."""
    config, tokenizer = known
    settings = masked_settings(model, decoding)
    _check_room(
        len(tokenizer.encode_prompt(prompt, thinking=decoding.thinking)),
        settings.gen_length,
        config.max_length - settings.gen_length,
    )


def _load_canvas(
    model: str, directory: pathlib.Path, policy: str | None, decoding: Decoding
) -> CanvasWriter:
    for name in _MASKED_ONLY:
        value = getattr(decoding, name)
        if value != getattr(Decoding, name):
            raise SettingError(
                name,
                value,
                f"it is for masked models, and {model} is a diffusion_gemma, which has canvases "
                "and a temperature schedule of its own",
                "Leave it out",
            )
    tokenizer = load_tokenizer(directory, needs_mask=False)
    loaded = diffusion_gemma.load(directory, dtype=decoding.dtype, param_dtype=decoding.dtype)
    config = loaded.model.config
    tokenizer.stop_ids = tuple(dict.fromkeys([tokenizer.eos_id, *config.eos_token_ids]))
    # Tokens of an answer at most, rounded up to whole canvases.
    length = masked_settings(model, decoding).gen_length
    shape = CanvasSettings(canvases=-(-length // config.canvas_length))
    named = policy or DEFAULT_CANVAS_POLICY
    return CanvasWriter(loaded, tokenizer, named, shape, decoding.thinking)


def masked_settings(
    model: str,
    decoding: Decoding,
    denoiser: Denoiser | None = None,
    tokenizer: Tokenizer | None = None,
) -> RolloutSettings:
    """The rollout's settings; without the model, those that follow from the decoding alone."""
    length, block = DEFAULT_LENGTH, 0
    if model in shipped_models():
        _, length, block = shipped_lengths(model)
    length = length if decoding.gen_length is None else decoding.gen_length
    with naming("cache", decoding.cache):
        cache = parse_cache(decoding.cache)
    stop_ids: tuple[int, ...] = ()
    sampling = Sampling(top_k=decoding.top_k, top_p=decoding.top_p)
    config = None if denoiser is None else denoiser.config
    if config is not None:
        sampling = families.sampling(config.family, decoding.top_k, decoding.top_p)
        block = config.attention_block or block
        if cache is not None:
            with naming("cache", decoding.cache):
                cache.check_fits(config)
        if config.attention_block is not None and tokenizer is not None:
            # Block-causal models were not trained to predict tokens after the end of a text.
            stop_ids = tokenizer.stop_ids
    is_fitting = block and (length % block == 0 or (config and config.attention_block))
    block = block if is_fitting else length
    if decoding.block_length is not None:
        block = decoding.block_length
    return RolloutSettings(
        gen_length=length,
        block_length=block,
        temperature=decoding.temperature,
        sampling=sampling,
        stop_ids=stop_ids,
        cache=cache,
    )


def answer_all(
    writer: Writer,
    prompts: Sequence[Prompt],
    settings: Mapping[str, Any],
    *,
    seed: int,
    turn: int,
    batch_size: int,
    pad_to: int,
    with_records: bool = False,
    watch: Watcher | None = None,
) -> Answers:
    """Answers prompts in batches; arguments as of `Generator.generate`.

    Batches are of 1, 2, 4, ... rows and of prompts of like length, so that a handful of programs
    serve all calls. What a prompt gets depends on neither.
    """
    encoded = [encode(writer, prompt) for prompt in prompts]
    policy = spelled(writer.policy, settings)
    order = sorted(range(len(encoded)), key=lambda number: len(encoded[number]))
    answers: dict[int, Answer] = {}
    for start in range(0, len(order), batch_size):
        members = order[start : start + batch_size]
        size = min(1 << (len(members) - 1).bit_length(), batch_size)
        width = padded_width(writer, len(encoded[members[-1]]), pad_to)
        rows = [encoded[number] for number in members] + [()] * (size - len(members))
        turns = np.asarray([turn + number for number in members] + [0] * (size - len(members)))
        keys = answer_keys(np.full(size, seed, np.uint32), turns.astype(np.int32))
        done, odds = writer.roll_out(
            rows, width, keys, settings, with_records=with_records, watch=watch
        )
        check_finite(done.confidence, done.step_map)
        for row, number in enumerate(members):
            answers[number] = writer.answer(
                done, row, prompts[number], len(encoded[number]), policy, odds
            )
    return Answers(answers[number] for number in range(len(prompts)))


def encode(writer: Writer, prompt: Prompt) -> list[int]:
    """Tokens of a prompt; a ValueError if it is too long."""
    tokens = writer.tokenizer.encode_prompt(prompt, thinking=writer.thinking)
    settings = writer.settings
    length = settings.gen_length if isinstance(settings, RolloutSettings) else 0
    length = length or settings.canvases * writer.block_length  # type: ignore[union-attr]
    _check_room(len(tokens), length, writer.room)
    return tokens


def _check_room(tokens: int, gen_length: int, room: int) -> None:
    if tokens > room:
        raise ValueError(
            f"the prompt has {tokens} tokens; with gen_length={gen_length} the model "
            f"(max_length={room + gen_length}) has room for {max(room, 0)}. Shorten the prompt or "
            "lower gen_length"
        )


def padded_width(writer: Writer, length: int, pad_to: int) -> int:
    """The length to which a prompt is padded."""
    return max(min(-(-length // pad_to) * pad_to, writer.room), 1)


def spelled(policy: str, settings: Mapping[str, Any]) -> str:
    """A policy in its notation, with settings of an answer."""
    more = ",".join(f"{name}={value}" for name, value in settings.items())
    return f"{policy}{',' if ':' in policy else ':'}{more}" if more else policy


def _padded(tokenizer: Tokenizer, encoded: Sequence[Sequence[int]], width: int) -> Prompts:
    """Prompts of one length; those without tokens do not exist, but for a single one."""
    prompts = tokenizer.pad_prompts(encoded, width)
    present = np.asarray([bool(tokens) for tokens in encoded])
    if len(encoded) == 1 or present.all():
        return prompts
    return dataclasses.replace(prompts, present=present)  # type: ignore[arg-type]
