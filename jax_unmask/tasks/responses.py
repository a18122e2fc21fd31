"""Given responses to given prompts: supervised training on data of one's own."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

from jax_unmask.settings import setting
from jax_unmask.tasks.base import Example, Prompt, Split
from jax_unmask.tasks.from_files import FileTask


@dataclasses.dataclass(frozen=True)
class GivenResponses(FileTask):
    """Prompts with the responses to learn.

    An example has a `prompt` (text, or chat messages) and a `response`; or `messages` alone, the
    last of which is the assistant's and makes the response. It may have a `step_map`: for every
    token of the response the step that wrote it, for the trace states of recipe state_sft.
    """

    name = "responses"
    place_field: ClassVar[str | None] = "place"

    _: dataclasses.KW_ONLY
    chat: bool = setting(
        False,
        "Prompts that are plain text become the user's turn of the chat template; otherwise they "
        "are taken as they are. Messages always go through the template.",
    )
    end: str = setting(
        "", "Text that ends each response unless it is there, such as <|im_end|>; padding follows."
    )

    def parse(self, example: Example) -> Example:
        """The record as prompt, response and maybe step map; refuses all others."""
        prompt, response = example.get("prompt"), example.get("response")
        if example.get("messages") is not None:  # Parquet has nulls instead.
            messages = _messages(example["messages"], "messages")
            if len(messages) < 2 or messages[-1]["role"] != "assistant":
                raise ValueError(
                    "field 'messages' must have at least two, the last one the assistant's, which "
                    f"is the response; its roles are {[each['role'] for each in messages]}"
                )
            prompt, response = messages[:-1], messages[-1]["content"]
        elif not isinstance(prompt, str):
            if prompt is None:
                raise ValueError(
                    f"field 'prompt' (or 'messages') is missing; found {sorted(example)}"
                )
            prompt = _messages(prompt, "prompt")
        if not isinstance(response, str) or not response:
            what = "is missing" if response is None else f"must be text, found {response!r}"
            raise ValueError(f"field 'response' {what}; the fields are {sorted(example)}")
        return {"prompt": prompt, "response": response, "step_map": _steps(example)}

    def prompt(self, example: Example) -> Prompt:
        """The prompt as it stands, or as a chat."""
        prompt: Prompt = example["prompt"]
        is_turn = self.chat and isinstance(prompt, str)
        return [{"role": "user", "content": str(prompt)}] if is_turn else prompt

    def target(self, example: Example) -> str:
        """The response, with its end."""
        response: str = example["response"]
        return response if response.endswith(self.end) else response + self.end

    def step_map(self, example: Example) -> Sequence[int] | None:
        """The step of each token of the response, if the example has them."""
        steps: Sequence[int] | None = example["step_map"]
        return steps

    def check(self, example: Example, response: str) -> float:
        """1 for the given response, word for word."""
        right = example["response"].removesuffix(self.end) if self.end else example["response"]
        return float(response.strip() == right.strip())

    def _stems(self, split: Split) -> Sequence[str]:
        # A lone file of any name is for training.
        return (*super()._stems(split), *([".*"] if split == "train" else []))


def _messages(value: Any, field: str) -> list[dict[str, str]]:
    """Chat messages with their roles and texts alone."""
    if not isinstance(value, list) or not value:
        raise ValueError(f"field {field!r} must be text or a list of messages, found {value!r:.80}")
    for number, each in enumerate(value):
        is_message = isinstance(each, dict) and all(
            isinstance(each.get(key), str) for key in ("role", "content")
        )
        if not is_message:
            raise ValueError(
                f"field {field!r}, message {number} must have 'role' and 'content' as text, found "
                f"{each!r:.80}"
            )
    return [{"role": each["role"], "content": each["content"]} for each in value]


def _steps(example: Example) -> list[int] | None:
    steps = example.get("step_map")
    if steps is None:
        return None
    if not isinstance(steps, list) or not all(type(each) is int and each >= 0 for each in steps):
        raise ValueError(f"field 'step_map' must be a list of steps from 0, found {steps!r:.80}")
    return steps
