"""Process rewards: scores of the chunks of responses, by a judge, relative to their groups."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jax_unmask.denoisers import Tokenizer
from jax_unmask.environment.bundle import Bundle
from jax_unmask.learners.advantages import chunk_z_scores
from jax_unmask.runtime.placement import Placement
from jax_unmask.settings import ConfigError, SettingError, Settings, setting, setting_of
from jax_unmask.tasks.base import Example, Task
from jax_unmask.tasks.judges import Judge, LanguageModelJudge, Solution, StepJudge


@dataclasses.dataclass(frozen=True)
class ProcessSettings(Settings):
    """Rewards of chunks of a response, for runs with a value model."""

    judge: Literal["none", "steps", "model"] = setting(
        "none", "steps verifies the steps of tasks that can, model asks a language model."
    )
    chunk_length: int = setting(200, "Tokens per chunk.", ge=1)
    url: str = setting(
        "http://localhost:8000/v1",
        "Of judge model: a server that speaks OpenAI's chat completions.",
    )
    model: str = setting("", "Of judge model: the name of its model.")
    votes: int = setting_of(LanguageModelJudge, "votes")
    timeout: float = setting_of(LanguageModelJudge, "timeout")
    retries: int = setting_of(LanguageModelJudge, "retries")
    workers: int = setting_of(LanguageModelJudge, "workers")
    api_key_variable: str = setting(
        "", "Environment variable that holds the server's key; empty for a server without one."
    )

    def check(self) -> None:
        if self.judge == "model":
            self.require(
                bool(self.model),
                "model",
                "it names no model",
                "Give the name that the server at `url` knows",
            )
            self.require(
                self.url.startswith(("http://", "https://")),
                "url",
                "it is no address",
                "Give one such as http://localhost:8000/v1",
            )


class Judged(NamedTuple):
    """Scores of the chunks of responses.

    Attributes:
        scores: z-score of each chunk among the same chunks of its group; 0 where there is none.
        mean: mean score of all chunks, before that.
    """

    scores: Float[np.ndarray, "B K"]
    mean: float


class ProcessRewards:
    """Scores the chunks of responses.

    Args:
        judge: scores chunks.
        task: poses the problems.
        tokenizer: turns tokens into text.
        chunk_length: tokens per chunk.
        placement: with several processes, each has the responses to its own problems judged.
    """

    def __init__(
        self,
        judge: Judge,
        task: Task,
        tokenizer: Tokenizer,
        chunk_length: int,
        placement: Placement,
    ) -> None:
        self._judge, self._task, self._tokenizer = judge, task, tokenizer
        self.chunk_length, self._placement = chunk_length, placement

    def __call__(
        self,
        examples: Sequence[Example | None],
        tokens: Int[np.ndarray, "B L"],
        length: Int[np.ndarray, " B"],
        right: Bool[np.ndarray, " B"],
        wanted: Bool[np.ndarray, " B"],
        group_size: int,
    ) -> Judged:
        """Scores of the chunks of each response.

        Args:
            examples: problem of each response; None where another process knows it.
            tokens: responses.
            length: tokens of each up to its end.
            right: whether the checker accepts it.
            wanted: the responses to judge; the others get zeros, and cost nothing.
            group_size: responses per prompt, next to each other.
        """
        # This process's responses. Of processes that share their rows, one asks.
        local = [(k, each) for k, each in enumerate(examples) if each is not None and wanted[k]]
        if not self._placement.is_first_of_feed:
            local = []
        solutions = [
            self._solution(each, tokens[k][: length[k]], bool(right[k])) for k, each in local
        ]
        most = -(-tokens.shape[1] // self.chunk_length)
        scores = np.zeros((len(tokens), most), np.float32)
        present = np.zeros((len(tokens), most), bool)
        for (row, _), each in zip(local, self._judge.judge(solutions), strict=True):
            scores[row, : len(each)], present[row, : len(each)] = each, True
        # A response has scores in one process, and zeros in all others.
        every = self._placement.gather((scores, present))
        scores, present = (x.reshape(-1, *scores.shape).sum(axis=0) for x in every)
        present = present > 0
        mean = float(scores[present].mean()) if present.any() else 0.0
        return Judged(chunk_z_scores(scores, present, group_size), mean)

    def _solution(self, example: Example, tokens: Int[np.ndarray, " n"], right: bool) -> Solution:
        prompt = self._task.prompt(example)
        if not isinstance(prompt, str):
            prompt = "\n\n".join(message["content"] for message in prompt)
        # A token may be a fraction of a character, so the whole text is decoded, and then cut.
        ends = [*range(self.chunk_length, len(tokens), self.chunk_length), len(tokens)]
        texts = [self._tokenizer.decode(tokens[:end].tolist()) for end in ends]
        edges = [0, *(len(text) for text in texts)]
        return Solution(
            example=example,
            question=prompt,
            answer=self._task.target(example),
            chunks=tuple(texts[-1][i:j] for i, j in itertools.pairwise(edges)),
            right=right,
        )


def build_process_rewards(process: ProcessSettings, bundle: Bundle) -> ProcessRewards | None:
    """The process rewards of a bundle's task; None for none.

    Raises:
        ConfigError: the task has no steps to verify, or the server's key is missing.
    """
    if process.judge == "none":
        return None
    judge: Judge
    if process.judge == "steps":
        try:
            judge = StepJudge(bundle.task)
        except ValueError as error:
            remedy = "Choose process.judge = 'model', or another task"
            raise ConfigError("process.judge", process.judge, str(error), remedy) from error
    else:
        key = None
        if process.api_key_variable:
            key = os.environ.get(process.api_key_variable)
            if not key:
                raise ConfigError(
                    "process.api_key_variable",
                    process.api_key_variable,
                    "the environment has no such variable, or it is empty",
                    "Set it, or leave the setting empty for a server without keys",
                )
        names = ("url", "model", "votes", "timeout", "retries", "workers")
        given = {name: getattr(process, name) for name in names}
        try:
            judge = LanguageModelJudge(**given, api_key=key)
        except SettingError as error:
            raise error.within("process") from error
    return ProcessRewards(
        judge, bundle.task, bundle.tokenizer, process.chunk_length, bundle.placement
    )
