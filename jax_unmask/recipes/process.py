"""Process rewards: scores of the chunks of responses, by a judge, relative to their groups."""

import dataclasses
import inspect
import itertools
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jax_unmask.environment.bundle import Bundle
from jax_unmask.learners.advantages import chunk_z_scores
from jax_unmask.notation import Names, NotationError
from jax_unmask.settings import ConfigError, SettingError, Settings, setting, setting_of
from jax_unmask.tasks.base import Example, Task
from jax_unmask.tasks.judges import Judge, LanguageModelJudge, Solution

JUDGES = Names(
    "judge", {"steps": "StepJudge", "model": "LanguageModelJudge"}, "jax_unmask.tasks.judges"
)


@dataclasses.dataclass(frozen=True)
class ProcessSettings(Settings):
    """Rewards of chunks of a response, for runs with a value model."""

    judge: str = setting(
        "none",
        "none, steps (verifies the steps of tasks that can), model (asks a language model), or the "
        "import path of a `tasks.judges.Judge` of one's own: it gets those of these settings, and "
        "of task and api_key, that it has parameters for.",
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
        if self.judge != "none":
            try:
                JUDGES(self.judge)
            except NotationError as error:
                raise SettingError("judge", self.judge, error.problem, "Correct it") from error


class Judged(NamedTuple):
    """Scores of the chunks of responses."""

    scores: Float[np.ndarray, "B K"]  # Among the same chunks of the group; 0 where there is none.
    mean: float  # Of all chunks, before that.


class ProcessRewards:
    """Scores the chunks of responses; each process has those to its own problems judged."""

    def __init__(self, judge: Judge, chunk_length: int, bundle: Bundle) -> None:
        self._judge, self.chunk_length = judge, chunk_length
        self._task, self._tokenizer = bundle.task, bundle.tokenizer
        self._placement = bundle.placement

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
            right: the checker accepts it.
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


def build_judge(process: ProcessSettings, task: Task) -> Judge | None:
    """The judge of the chunks of a task's responses; None for none.

    Raises:
        ConfigError: the task has no steps to verify, the server's key is missing, or its address
            or model is none.
    """
    if process.judge == "none":
        return None
    variable, kind = process.api_key_variable, JUDGES(process.judge)
    if variable and not os.environ.get(variable):
        raise ConfigError(
            "process.api_key_variable",
            variable,
            "the environment has no such variable, or it is empty",
            "Set it, or leave the setting empty for a server without keys",
        )
    given = vars(process) | {"task": task, "api_key": os.environ.get(variable)}
    try:
        wanted = inspect.signature(kind).parameters
        judge: Judge = kind(**{name: given[name] for name in wanted if name in given})
    except SettingError as error:
        raise error.within("process") from error
    except ValueError as error:
        remedy = "Choose another judge, or another task"
        raise ConfigError("process.judge", process.judge, str(error), remedy) from error
    return judge
