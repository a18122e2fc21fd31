"""A model under an unmasking policy, behind lm-evaluation-harness's interface of models."""

import logging
import math
from typing import Any

import jax
import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from jax_unmask import denoisers
from jax_unmask.denoisers import Denoiser, Params, Tokenizer
from jax_unmask.denoisers.tokenizer import before_stops
from jax_unmask.environment.bundle import load_model, read_model
from jax_unmask.evaluation.harness_settings import HarnessSettings
from jax_unmask.evaluation.likelihood import Likelihood
from jax_unmask.rollout import rollout, row_keys
from jax_unmask.rollout.trajectory import check_finite
from jax_unmask.runtime import streams
from jax_unmask.settings import naming

logger = logging.getLogger(__name__)
_WIDTH = 64
"""Prompts are padded to multiples of this: few lengths to compile for."""


class HarnessModel(LM):
    """Answers the harness's requests.

    `generate_until` rolls canvases out under the policy and cuts the texts at the task's stop
    strings; the harness's own sampling settings (temperature, top_p, ...) play no part, because the
    policy and the canvas decide. `loglikelihood` masks at random, see `evaluation.likelihood`.

    Args:
        denoiser, params, tokenizer: the dLLM.
        name: what the harness calls the model.
        settings: those of `HarnessSettings`. Without `check_greedy`, `loglikelihood` says of no
            text that it is the greedy one.

    Attributes:
        sequences, forwards: texts that were generated, and denoiser forwards that they needed.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        params: Params,
        tokenizer: Tokenizer,
        *,
        name: str = "jax_unmask",
        **settings: Any,
    ) -> None:
        super().__init__()
        chosen = HarnessSettings(**settings)
        self._denoiser, self._params, self._tokenizer = denoiser, params, tokenizer
        self._name = name
        self._settings = chosen.rollouts
        self._policy, self._policy_params = chosen.parse(name, denoiser.config)
        self._batch_size, self._check_greedy = chosen.batch_size, chosen.check_greedy
        self._mc = {
            "draws": chosen.mc_draws,
            "batch_size": chosen.mc_batch_size,
            "together": chosen.mc_together,
            "seed": chosen.seed,
        }
        self._likelihood: Likelihood | None = None
        self._key = streams.stream(streams.root(chosen.seed), "sampling")
        self.sequences = self.forwards = 0

    @classmethod
    def load(cls, path: str, *, dtype: str | None = None, **settings: Any) -> "HarnessModel":
        """Loads a model; `path` as in `environment.bundle.load_model`."""
        with naming("model", path):
            shape, _ = read_model(path)
            denoisers.check_weights(path)
        HarnessSettings(**settings).parse(path, shape)  # What is wrong shows before the weights.
        denoiser, params, tokenizer = load_model(path, dtype=dtype, param_dtype=dtype)
        return cls(denoiser, params, tokenizer, name=path, **settings)

    @property
    def tokenizer_name(self) -> str:
        """Name for the key of the harness's request cache."""
        return self._name.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Name that the harness records; conversations use the tokenizer's own template."""
        return "tokenizer" if chat_template else ""

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The conversation as the text of a prompt."""
        if not add_generation_prompt:
            raise ValueError("this model cannot continue an assistant's turn that was begun")
        tokens = self._tokenizer.encode_prompt(chat_history)
        return self._tokenizer.decode(tokens, skip_special_tokens=False, cut_at_eos=False)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Texts up to the first of each request's stop strings."""
        encoded = [self._encode(request.args[0]) for request in requests]
        prompts = [tokens or [] for tokens in encoded]
        # Of like length together, so that batches pad little. Each row has its own random stream.
        known = [index for index, tokens in enumerate(encoded) if tokens is not None]
        order = sorted(known, key=lambda index: len(prompts[index]))
        texts = [""] * len(requests)
        for start in range(0, len(order), self._batch_size):
            rows = order[start : start + self._batch_size]
            for row, text in zip(rows, self._generate(rows, prompts), strict=True):
                until = requests[row].args[1].get("until") or []
                stops = [until] if isinstance(until, str) else until
                texts[row], _ = before_stops(text, stops)
                self.cache_hook.add_partial("generate_until", requests[row].args, texts[row])
        return texts

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether it is greedy (with `check_greedy`)."""
        answers = [(0.0, True)] * len(requests)  # Of empty continuations.
        pairs, owners, longest = [], [], self._denoiser.config.max_length
        for number, request in enumerate(requests):
            split = self._split(*request.args)
            if split is None:
                answers[number] = (-math.inf, False)
            elif split[1]:
                # What is too long loses its head, as in the harness's own models.
                prompt, response = split[0], split[1][-longest:]
                pairs.append((prompt[max(len(prompt) + len(response) - longest, 0) :], response))
                owners.append(number)
        values = self._estimator.log_likelihoods(pairs)
        are_greedy = [False] * len(pairs)
        if self._check_greedy:
            are_greedy = self._estimator.are_greedy(pairs)
        for number, value, is_greedy in zip(owners, values, are_greedy, strict=True):
            answers[number] = (value, is_greedy)
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, answer)
        return answers

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihood of whole texts; windows of half the model's length, each given the one
        before it."""
        window = max(self._denoiser.config.max_length // 2, 1)
        pairs, owners, values = [], [], [0.0] * len(requests)
        for number, request in enumerate(requests):
            tokens = self._encode(request.args[0])
            if tokens is None:
                values[number] = -math.inf
                continue
            for start in range(0, len(tokens), window):
                pairs.append((tokens[max(start - window, 0) : start], tokens[start:][:window]))
                owners.append(number)
        for number, value in zip(owners, self._estimator.log_likelihoods(pairs), strict=True):
            values[number] += value
        for request, value in zip(requests, values, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, value)
        return values

    @property
    def _estimator(self) -> Likelihood:
        """The estimator, made on first use: models that cannot estimate may still generate."""
        if self._likelihood is None:
            self._likelihood = Likelihood(self._denoiser, self._params, **self._mc)
        return self._likelihood

    def _generate(self, rows: list[int], prompts: list[list[int]]) -> list[str]:
        room = self._denoiser.config.max_length - self._settings.gen_length
        longest = max(len(prompts[row]) for row in rows)
        width = max(min(-(-longest // _WIDTH) * _WIDTH, room), 1)
        # Rows that only fill the batch up repeat its last prompt, and are dropped.
        filled = rows + rows[-1:] * (self._batch_size - len(rows))
        trajectory = rollout(
            self._denoiser,
            self._params,
            self._policy,
            self._policy_params,
            self._tokenizer.pad_prompts([prompts[row] for row in filled], width, truncate=True),
            row_keys(self._key, jax.numpy.asarray(filled)),
            self._settings,
        )
        trajectory = jax.device_get(trajectory)
        check_finite(trajectory.confidence, trajectory.step_map)
        tokens, nfe = trajectory.tokens, trajectory.nfe
        self.sequences += len(rows)
        self.forwards += int(nfe[: len(rows)].sum())
        return self._tokenizer.decode_batch(np.asarray(tokens)[: len(rows)])

    def _encode(self, text: str) -> list[int] | None:
        """Tokens of a request's text; None, and a warning, if the vocabulary cannot write it."""
        try:
            return self._tokenizer.encode(text)
        except ValueError as error:
            logger.warning("A request counts as unanswered: %s", error)
            return None

    def _split(self, context: str, continuation: str) -> tuple[list[int], list[int]] | None:
        """Tokens of both, as they are in the text as a whole; spaces belong to the continuation."""
        stripped = context.rstrip()
        continuation = context[len(stripped) :] + continuation
        prompt, whole = self._encode(stripped), self._encode(stripped + continuation)
        if prompt is None or whole is None:
            return None
        if whole[: len(prompt)] == prompt and len(whole) > len(prompt):
            return prompt, whole[len(prompt) :]
        # The tokenizer joins them: a token would belong to both.
        return prompt, self._tokenizer.encode(continuation)
