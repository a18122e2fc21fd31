"""The OpenAI protocol: from the JSON of a request to canvases, and from canvases to JSON."""

import dataclasses
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jax_unmask import notation, policies
from jax_unmask.denoisers import Tokenizer
from jax_unmask.denoisers.tokenizer import before_stops
from jax_unmask.generation.answers import MaskedWriter
from jax_unmask.policies.base import Policy, alphas_of
from jax_unmask.rollout import RolloutSettings
from jax_unmask.rollout.continuous import Progress
from jax_unmask.serving.engine import Shape, text_end
from jax_unmask.settings import SettingError, Settings, setting

_PROMPT_STEP = 4
"""Prompts are padded to 64, 256, 1024, ... tokens: each length is a batch of its own."""
_MOST_CHOICES, _MOST_STOPS = 16, 4
# A request that asks for one of these is refused; the values ask for nothing.
_NOT_OFFERED: dict[str, tuple[Any, ...]] = {
    "logprobs": (None, False, 0),
    "top_logprobs": (None, 0),
    "echo": (None, False),
    "suffix": (None, ""),
    "best_of": (None, 1),
    "logit_bias": (None, {}),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "tools": (None, []),
    "functions": (None, []),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
}
_READ = (
    *("model", "messages", "prompt", "max_tokens", "max_completion_tokens", "temperature", "top_p"),
    *("n", "seed", "stop", "stream", "stream_options"),
    *("policy", "policy_settings", "nfe", "alpha", "threshold"),
)
# Of no consequence for an answer of this server.
_IGNORED = (
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
    *("prompt_cache_retention", "tool_choice", "function_call", "parallel_tool_calls"),
    *("reasoning_effort", "verbosity"),
)
_KNOWN = {*_READ, *_NOT_OFFERED, *_IGNORED}


class BadRequest(ValueError):
    """A request that cannot be served; `status` and `param` as the protocol wants them."""

    def __init__(
        self, message: str, *, param: str | None = None, status: int = 400, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.param, self.status, self.code = param, status, code

    def body(self) -> dict[str, Any]:
        """The error as JSON."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": error}


@dataclasses.dataclass(frozen=True)
class RequestLimits(Settings):
    """Limits of a single request."""

    max_body: int = setting(2**20, "Bytes of a request's body at most.", ge=1, le=2**30)
    max_prompt: int = setting(1024, "Tokens of a prompt at most.", ge=1, le=2**20)


@dataclasses.dataclass(frozen=True)
class Asked:
    """A request that was understood.

    Attributes:
        shape, params: of its canvases, see `engine.CanvasRequest`.
        policy: name of the policy, with the settings of this request.
        prompts: tokens of each.
        choices: answers to each prompt.
        most: tokens of an answer at most.
        stops: strings that end an answer.
        is_streamed, with_usage, with_canvas: what to send while it runs, and at its end.
    """

    shape: Shape
    params: Mapping[str, Any]
    policy: str
    model: str
    prompts: list[list[int]]
    choices: int
    most: int
    seed: int
    stops: tuple[str, ...]
    is_chat: bool
    is_streamed: bool
    with_usage: bool
    with_canvas: bool
    id: str = ""
    created: int = 0


@dataclasses.dataclass(frozen=True)
class Served:
    """A policy of the server, and how it goes from fast to careful, for the page.

    Attributes:
        setting: what makes it fast or careful, from `fast` to `careful`; None if nothing does.
        value: of the setting where a request names none; None if it does not stand in the params.
    """

    name: str
    policy: Policy
    params: Any
    setting: str | None
    fast: float
    careful: float
    is_logarithmic: bool
    value: float | None


class Model:
    """A loaded model as requests see it.

    Args:
        name: what it is called.
        writer: the model; its settings are those of the longest canvas.
        served: the policies that requests can name, the first of which is the default.
        lengths: canvas lengths; a request gets the shortest that holds its `max_tokens`.
        temperatures: those that requests may name, the default first.
        limits: see there.
        seed: of requests that name none.
    """

    def __init__(
        self,
        name: str,
        writer: MaskedWriter,
        served: Sequence[str],
        lengths: Sequence[int],
        temperatures: Sequence[float],
        limits: RequestLimits,
        seed: int = 0,
    ) -> None:
        self.name, self.writer, self.limits, self.seed = name, writer, limits, seed
        self.lengths, self.temperatures = tuple(sorted(lengths)), tuple(temperatures)
        longest = writer.denoiser.config.max_length
        self.shapes = {length: self._settings(length) for length in self.lengths}
        self._drawn = {
            (length, temperature): dataclasses.replace(shape, temperature=temperature)
            for length, shape in self.shapes.items()
            for temperature in self.temperatures
        }
        room = longest - self.lengths[-1]
        if room < 1:
            problem = f"the model's max_length is {longest}, which leaves no room for prompts"
            raise SettingError("gen_length", self.lengths[-1], problem, "Lower it")
        self.served = {text: self._serve(text) for text in served}
        self.example = writer.tokenizer.example
        self._has_template = writer.tokenizer.has_chat_template

    @property
    def shared(self) -> dict[str, Any]:
        """Params of each policy by its name."""
        return {name: each.params for name, each in self.served.items()}

    def first_shapes(self) -> list[Shape]:
        """The shape of a request for each policy that names nothing, with a short prompt."""
        length, temperature = self.lengths[-1], self.temperatures[0]
        return [
            self._shape(each.name, each.policy, length, 1, temperature)
            for each in self.served.values()
        ]

    def listed(self) -> list[dict[str, Any]]:
        """The models of the protocol: this one, and it under each of its policies."""
        names = [(self.name, None), *((f"{self.name}@{name}", name) for name in self.served)]
        return [
            {
                "id": id,
                "object": "model",
                "created": 0,
                "owned_by": "jax_unmask",
                "policy": policy or next(iter(self.served)),
            }
            for id, policy in names
        ]

    def described(self) -> dict[str, Any]:
        """The model as the page shows it."""
        return {
            "model": self.name,
            "gen_length": self.lengths[-1],
            "is_chat": self._has_template,
            "example": self.example,
            "policies": [
                {
                    "name": each.name,
                    "setting": each.setting,
                    "fast": each.fast,
                    "careful": each.careful,
                    "logarithmic": each.is_logarithmic,
                    "value": each.value,
                }
                for each in self.served.values()
            ],
        }

    def understand(self, body: Any, *, is_chat: bool) -> Asked:
        """A request, checked as a whole.

        Raises:
            BadRequest: it asks for something that is not there.
        """
        if not isinstance(body, dict):
            raise BadRequest("the body is no JSON object")
        for name in body.keys() - _KNOWN:
            known = notation.suggestion(name[:80], _READ)
            raise BadRequest(f"{name!r:.80} is no field of a request{known}", param=name[:80])
        for name, nothing in _NOT_OFFERED.items():
            if body.get(name) not in nothing:
                raise BadRequest(
                    f"{name} is not offered: a masked model fills its canvas in any order. Leave "
                    "it out",
                    param=name,
                )
        model, policy_name = self._named(body)
        most = _number(body, "max_tokens", int, 1, None, self.lengths[-1])
        most = min(_number(body, "max_completion_tokens", int, 1, None, most), self.lengths[-1])
        length = next(each for each in self.lengths if each >= most)
        temperature = self._temperature(body)
        top_p = body.get("top_p")
        if top_p not in (None, 1, self.writer.settings.sampling.top_p):
            raise BadRequest(
                f"top_p={top_p!r:.80}: this server draws with top_p="
                f"{self.writer.settings.sampling.top_p:g}; leave it out",
                param="top_p",
            )
        prompts = self._prompts(body, is_chat)
        longest = max(len(prompt) for prompt in prompts)
        room = min(self.limits.max_prompt, self.writer.denoiser.config.max_length - length)
        if longest > room:
            raise BadRequest(
                f"the prompt has {longest} tokens; with a canvas of {length} there is room for "
                f"{room}. Shorten it, or lower max_tokens",
                param="messages" if is_chat else "prompt",
                code="context_length_exceeded",
            )
        settings = _policy_settings(body)
        served = self.served[policy_name]
        try:
            policy, params = policies.adjusted(
                policy_name,
                served.policy,
                served.params,
                settings,
                environment=self._environment(length),
            )
        except SettingError as error:
            raise BadRequest(str(error), param=error.key) from error
        options = body.get("stream_options") or {}
        if not isinstance(options, dict):
            raise BadRequest("stream_options must be an object", param="stream_options")
        return Asked(
            shape=self._shape(policy_name, policy, length, longest, temperature),
            params=params,
            policy=_spelled(policy_name, settings),
            model=model,
            prompts=prompts,
            choices=_number(body, "n", int, 1, _MOST_CHOICES, 1),
            most=most,
            seed=_number(body, "seed", int, 0, 2**32 - 1, self.seed),
            stops=_stops(body),
            is_chat=is_chat,
            is_streamed=_flag(body, "stream"),
            with_usage=_flag(options, "include_usage"),
            with_canvas=_flag(options, "include_canvas"),
            id=("chatcmpl-" if is_chat else "cmpl-") + f"{random.getrandbits(128):032x}",
            created=int(time.time()),
        )

    def _named(self, body: Mapping[str, Any]) -> tuple[str, str]:
        """The model that a request names, and its policy."""
        first = next(iter(self.served))
        named = body.get("model") or self.name
        if not isinstance(named, str):
            raise BadRequest("model must be a string", param="model")
        model, _, policy = named.partition("@")
        if model != self.name or (policy and policy not in self.served):
            known = ", ".join(each["id"] for each in self.listed())
            raise BadRequest(
                f"there is no model {named!r:.80}; there are {known}",
                param="model",
                status=404,
                code="model_not_found",
            )
        chosen = policy or first if body.get("policy") is None else body["policy"]
        if not isinstance(chosen, str) or chosen not in self.served:
            known = ", ".join(self.served)
            raise BadRequest(
                f"there is no policy {chosen!r:.80}; there are {known}", param="policy"
            )
        return named, chosen

    def _temperature(self, body: Mapping[str, Any]) -> float:
        value = _number(body, "temperature", float, 0, None, self.temperatures[0])
        if value not in self.temperatures:
            known = ", ".join(f"{each:g}" for each in self.temperatures)
            raise BadRequest(
                f"temperature={value:g}: this server draws at {known}; ask for one of these, or "
                "start it with others (--temperatures)",
                param="temperature",
            )
        return value

    def _prompts(self, body: Mapping[str, Any], is_chat: bool) -> list[list[int]]:
        """Tokens of the prompts of a request."""
        name = "messages" if is_chat else "prompt"
        given = body.get(name)
        try:
            if is_chat:
                return [self._encode_chat(given)]
            many = given if _is_list_of(given, str) or _is_list_of(given, list) else [given]
            if not many or len(many) > _MOST_CHOICES:
                raise BadRequest(f"give 1 to {_MOST_CHOICES} prompts", param=name)
            return [self._encode(each) for each in many]
        except BadRequest:
            raise
        except ValueError as error:  # Words that the vocabulary lacks, a template that refuses.
            raise BadRequest(str(error), param=name) from error

    def _encode(self, prompt: Any) -> list[int]:
        if isinstance(prompt, str):
            return self.writer.tokenizer.encode(prompt)
        size = self.writer.tokenizer.vocab_size
        is_tokens = _is_list_of(prompt, int) and not any(isinstance(each, bool) for each in prompt)
        if not is_tokens or not all(0 <= token < size for token in prompt):
            raise BadRequest(f"prompt must be text, or tokens from 0 to {size - 1}", param="prompt")
        return list(prompt)

    def _encode_chat(self, given: Any) -> list[int]:
        if not _is_list_of(given, dict) or not given:
            raise BadRequest("messages must be a list of objects", param="messages")
        if not all(isinstance(each.get("role"), str) for each in given):
            raise BadRequest("each message must have a role, as text", param="messages")
        messages = [{"role": each["role"], "content": _text(each)} for each in given]
        if self._has_template:
            return self.writer.tokenizer.encode_prompt(messages, thinking=self.writer.thinking)
        # Models without a chat template (the shipped ones) know single prompts.
        return self.writer.tokenizer.encode(messages[-1]["content"])

    def _shape(
        self, name: str, policy: Policy, length: int, prompt: int, temperature: float
    ) -> Shape:
        room = min(self.limits.max_prompt, self.writer.denoiser.config.max_length - length)
        width = 64
        while width < min(prompt, room):
            width *= _PROMPT_STEP
        return Shape(policy, name, self._drawn[length, temperature], min(width, room))

    def _settings(self, length: int) -> RolloutSettings:
        """Settings of a canvas length; the block of full diffusion is the canvas."""
        whole = self.writer.settings
        is_full = whole.block_length == whole.gen_length
        block = length if is_full else whole.block_length
        return dataclasses.replace(whole, gen_length=length, block_length=block)

    def _environment(self, length: int) -> dict[str, str | int]:
        """The environment of policies on canvases of a length."""
        return {**self.writer.environment, **self.shapes[length].environment}

    def _serve(self, text: str) -> Served:
        shape = self.shapes[self.lengths[-1]]
        policy, params = policies.parse_policy(
            text, environment=self._environment(self.lengths[-1])
        )
        for length in self.lengths:  # A calibration may be for one canvas only.
            policies.parse_policy(text, environment=self._environment(length))
        name, fast, careful, is_log = _speed(policy, params, shape)
        value = params.get(name) if isinstance(params, dict) else None
        if value is not None:
            value = float(np.clip(value, min(fast, careful), max(fast, careful)))
        return Served(text, policy, params, name, fast, careful, is_log, value)


def _speed(
    policy: Policy, params: Any, shape: RolloutSettings
) -> tuple[str | None, float, float, bool]:
    """The setting that makes a policy fast or careful, from where to where."""
    alphas = alphas_of(policy)
    if alphas:
        return "alpha", max(alphas), max(min(alphas), 1e-6), True
    if isinstance(params, dict):
        if "threshold" in params:
            return "threshold", 0.3, 1.0, False
        if "steps" in params:
            blocks = -(-shape.gen_length // shape.block_length)
            return "nfe", float(blocks), float(shape.gen_length), True
        for name, fast, careful in (("gamma", 4.0, 0.01), ("factor", 8.0, 0.1)):
            if name in params:
                return name, fast, careful, True
    return None, 0.0, 0.0, False


class Text:
    """The text of a canvas while it is filled: what is certain of it, from left to right."""

    def __init__(self, tokenizer: Tokenizer, asked: Asked) -> None:
        self._tokenizer, self._asked, self._sent = tokenizer, asked, ""
        self._may_change = not asked.shape.policy.needs.final_tokens

    def delta(self, place: Progress) -> str:
        """The text that the canvas adds to what was sent."""
        if self._may_change:
            return ""
        filled = place.step_map >= 0
        count = len(filled) if filled.all() else int(np.argmin(filled))
        end, _ = text_end(place.tokens[:count], self._tokenizer.stop_ids, self._asked.most)
        text = self._tokenizer.decode(place.tokens[:end])
        # A character of several tokens, and a stop string, may have begun.
        text = text.rstrip("\ufffd")
        held = max((len(stop) for stop in self._asked.stops), default=1) - 1
        return self._add(before_stops(text, self._asked.stops)[0][: max(len(text) - held, 0)])

    def last(self, text: str) -> str:
        """The rest of the text."""
        return self._add(text)

    def _add(self, text: str) -> str:
        if not text.startswith(self._sent):
            return ""
        new, self._sent = text[len(self._sent) :], text
        return new


@dataclasses.dataclass(frozen=True)
class Choice:
    """A finished answer."""

    text: str
    tokens: int
    finish_reason: str
    nfe: int
    seconds: float


def finished(tokenizer: Tokenizer, asked: Asked, place: Progress, seconds: float) -> Choice:
    """The answer on a canvas that is done."""
    count, is_ended = text_end(place.tokens, tokenizer.stop_ids, asked.most)
    text, is_cut = before_stops(tokenizer.decode(place.tokens[:count]), asked.stops)
    reason = "stop" if is_ended or is_cut else "length"
    return Choice(text, count, reason, place.nfe, seconds)


def response(asked: Asked, choices: Sequence[Choice]) -> dict[str, Any]:
    """The whole answer as JSON."""
    kind = "chat.completion" if asked.is_chat else "text_completion"
    listed = []
    for index, choice in enumerate(choices):
        said: dict[str, Any] = {"text": choice.text}
        if asked.is_chat:
            said = {"message": {"role": "assistant", "content": choice.text}}
        listed.append(
            {"index": index, **said, "logprobs": None, "finish_reason": choice.finish_reason}
        )
    return {
        **_head(asked, kind),
        "choices": listed,
        "usage": usage(asked, choices),
        "unmasking": unmasking(asked, choices),
    }


def chunk(
    asked: Asked, index: int, delta: str, reason: str | None = None, **more: Any
) -> dict[str, Any]:
    """A piece of a streamed answer as JSON."""
    kind = "chat.completion.chunk" if asked.is_chat else "text_completion"
    said: dict[str, Any] = {"text": delta}
    if asked.is_chat:
        said = {"delta": {"content": delta} if delta or not reason else {}}
    choice = {"index": index, **said, "logprobs": None, "finish_reason": reason}
    return {**_head(asked, kind), "choices": [choice], **more}


def last_chunk(asked: Asked, choices: Sequence[Choice]) -> dict[str, Any]:
    """The piece with the usage of all choices."""
    kind = "chat.completion.chunk" if asked.is_chat else "text_completion"
    return {**_head(asked, kind), "choices": [], "usage": usage(asked, choices)}


def canvas(tokenizer: Tokenizer, place: Progress, most: int) -> dict[str, Any]:
    """A canvas as JSON: the text of each token, and the step that filled it."""
    count, _ = text_end(place.tokens, tokenizer.stop_ids, most)
    count = count if place.is_done else min(len(place.tokens), most)
    tokens = place.tokens[:count].tolist()
    stops = tokenizer.stop_ids
    pieces = tokenizer.pieces(tokens)
    return {
        "nfe": place.nfe,
        "pieces": ["" if token in stops else p for token, p in zip(tokens, pieces, strict=True)],
        "step_map": place.step_map[:count].tolist(),
    }


def usage(asked: Asked, choices: Sequence[Choice]) -> dict[str, int]:
    """Tokens of prompts and answers."""
    prompt = sum(len(each) for each in asked.prompts)
    tokens = sum(choice.tokens for choice in choices)
    return {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}


def unmasking(asked: Asked, choices: Sequence[Choice]) -> dict[str, Any]:
    """Cost of the answers: forwards and seconds of each."""
    return {
        "policy": asked.policy,
        "gen_length": asked.shape.settings.gen_length,
        "nfe": [choice.nfe for choice in choices],
        "seconds": [round(choice.seconds, 4) for choice in choices],
    }


def _head(asked: Asked, kind: str) -> dict[str, Any]:
    return {"id": asked.id, "object": kind, "created": asked.created, "model": asked.model}


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if not isinstance(value, bool | None):
        raise BadRequest(f"{name}={value!r:.80} must be true or false", param=name)
    return bool(value)


def _stops(body: Mapping[str, Any]) -> tuple[str, ...]:
    given = body.get("stop")
    stops = [] if given is None else [given] if isinstance(given, str) else given
    if not isinstance(stops, list) or not all(isinstance(each, str) and each for each in stops):
        raise BadRequest("stop must be a string, or a list of them; none empty", param="stop")
    if len(stops) > 4 * _MOST_STOPS:
        raise BadRequest(f"give at most {4 * _MOST_STOPS} stop strings", param="stop")
    return tuple(stops)


def _policy_settings(body: Mapping[str, Any]) -> dict[str, float]:
    """Settings of the policy: fields of the request, or of its `policy_settings`."""
    inner = {} if body.get("policy_settings") is None else body["policy_settings"]
    if not isinstance(inner, dict) or len(inner) > 16:
        problem = "policy_settings must be an object of at most 16 settings"
        raise BadRequest(problem, param="policy_settings")
    given = {name: body.get(name) for name in ("nfe", "alpha", "threshold")} | inner
    return {
        name: _number(given, name, float, None, None, None)
        for name, value in given.items()
        if value is not None
    }


def _number(
    body: Mapping[str, Any],
    name: str,
    kind: type,
    low: float | None,
    high: float | None,
    default: Any,
) -> Any:
    value = body.get(name)
    if value is None:
        return default
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or abs(value) > 2**53 or value != value or (kind is int and value % 1):
        word = "whole number" if kind is int else "number"
        raise BadRequest(f"{name}={value!r:.80} is no {word} that can be used", param=name)
    if (low is not None and value < low) or (high is not None and value > high):
        limits = " ".join(
            f"{word} {limit:.10g}"
            for word, limit in (("at least", low), ("at most", high))
            if limit is not None
        )
        raise BadRequest(f"{name}={value!r} must be {limits}", param=name)
    return kind(value)


def _spelled(policy: str, settings: Mapping[str, float]) -> str:
    more = ",".join(f"{name}={value:g}" for name, value in settings.items())
    return f"{policy}{',' if ':' in policy else ':'}{more}" if more else policy


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list) and _is_list_of(content, dict):
        texts = [part.get("text") for part in content if part.get("type") == "text"]
        if len(texts) == len(content) and _is_list_of(texts, str):
            return "".join(texts)
    raise BadRequest("the content of a message must be text", param="messages")


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(each, kind) for each in value) and bool(value)
