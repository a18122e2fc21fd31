"""Batches of prompts, with target responses if wanted, whose position can be saved and restored.

The order of the examples depends on the seed and on the step only: not on the number of hosts that
share a batch, nor on where a run was interrupted. Shuffling computes each position when it is asked
for (grain's index shuffle), so the 2**31 examples of a generated task cost nothing.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Int

from jax_unmask.settings import SettingError
from jax_unmask.tasks.base import Example, Source, Split, Task

if TYPE_CHECKING:
    from jax_unmask.prompts import Prompts

State = dict[str, Any]

# Rows of a pipeline without end. Below sys.maxsize, which grain gives to an endless repetition: it
# rounds lengths in floating point, and would round that one up to more than an index can hold.
_ENDLESS = 2**62


class PromptTokenizer(Protocol):
    """The methods of a tokenizer that batches need."""

    eos_id: int

    def encode_prompt(self, prompt: str | list[dict[str, str]]) -> list[int]: ...

    def encode(self, text: str) -> list[int]: ...

    def pad_prompts(
        self, prompts: Sequence[Sequence[int]], length: int, *, truncate: bool = False
    ) -> "Prompts": ...


@dataclasses.dataclass(frozen=True)
class BatchSettings:
    """Shapes, order and share of batches.

    Attributes:
        batch_size: rows of a global batch.
        prompt_length: prompt budget P in tokens.
        gen_length: canvas length L of the target responses, which are filled up with EOS; 0 makes
            batches of prompts alone.
        seed: order of the examples; for tasks that generate their problems, the problems too.
        num_epochs: passes over the split; None is without end. A batch may hold the end of one
            epoch and the beginning of the next.
        shuffle: shuffle anew in each epoch.
        truncate: cut prompts over the budget at their start (as the published experiments do)
            instead of raising.
        limit: use only so many examples of the split, its first ones.
        shard_index: this host's shard of every batch; shard i of n holds the rows
            `i * batch_size / n` up to `(i + 1) * batch_size / n`.
        shard_count: number of shards n (hosts); must divide `batch_size`.

    Raises:
        ValueError: a setting is out of its range; the message names it.
    """

    batch_size: int
    prompt_length: int
    gen_length: int = 0
    seed: int = 0
    num_epochs: int | None = None
    shuffle: bool = True
    truncate: bool = False
    limit: int | None = None
    shard_index: int = 0
    shard_count: int = 1

    def __post_init__(self) -> None:
        for name in ("batch_size", "prompt_length", "num_epochs", "limit", "shard_count"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if self.gen_length < 0:
            raise ValueError(f"gen_length={self.gen_length} must not be negative")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed={self.seed} must be in 0..2**32 - 1")
        if not 0 <= self.shard_index < self.shard_count:
            raise ValueError(
                f"shard_index={self.shard_index} must be in 0..shard_count - 1 = "
                f"{self.shard_count - 1}"
            )
        if self.batch_size % self.shard_count:
            raise ValueError(
                f"batch_size={self.batch_size} is not divisible by shard_count={self.shard_count}; "
                "choose a batch size that divides evenly among the hosts"
            )


@dataclasses.dataclass(frozen=True)
class Batch:
    """B examples with their prompts and, if asked for, their target responses.

    Attributes:
        examples: the task's examples, for `Task.check_batch`.
        prompts: left-padded prompts, tokens and mask [B, P] as NumPy arrays.
        prompt_lengths: tokens of each prompt; above P where it was cut.
        responses: target tokens, filled up with EOS tokens that count as response; L is 0 in
            batches of prompts alone.
        valid: False in the rows that only fill up the last batch of the last epoch; they repeat
            the last example and must not be counted.
        steps: the step that wrote each response token, where the task knows it (`step_map`), and a
            later one for the end and the padding; -1 in rows of which it knows nothing. None if
            that is all of them.
    """

    examples: list[Example]
    prompts: "Prompts"
    prompt_lengths: Int[np.ndarray, " B"]
    responses: Int[np.ndarray, "B L"]
    valid: Bool[np.ndarray, " B"]
    steps: Int[np.ndarray, "B L"] | None = None


class BatchIterator:
    """Iterator over batches with a position that can be saved and restored.

    `get_state` gives a small JSON-able dict. `set_state` continues from it, in another process or
    with another number of shards just as well, and refuses the state of another pipeline.
    """

    def __init__(self, batches: Any, identity: State) -> None:
        self._batches = batches
        self._identity = identity

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return next(self._batches)

    def get_state(self) -> State:
        """The position of the next batch."""
        return {**self._identity, "position": self._batches.get_state()}

    def set_state(self, state: State) -> None:
        """Moves to a position that `get_state` gave.

        Raises:
            ValueError: if the state is of a pipeline over other data or in another order.
        """
        for field, value in self._identity.items():
            if state.get(field) != value:
                raise ValueError(
                    f"saved data position has {field}={state.get(field)!r}, this run has "
                    f"{field}={value!r}; restore the old setting, or start in a new workdir"
                )
        self._batches.set_state(state["position"])


def batches(
    task: Task, split: Split, tokenizer: PromptTokenizer, settings: BatchSettings
) -> BatchIterator:
    """Batches of a task's split.

    Raises:
        ValueError: for an empty split; when iterating, a `SettingError` for a prompt over the
            budget without `truncate` and for a target of more than `gen_length` tokens (the message
            names the example).
    """
    import grain  # Slow to import; the tasks themselves do without it.

    source = task.source(split, seed=settings.seed)
    length = len(source) if settings.limit is None else min(settings.limit, len(source))
    if length < 1:
        raise ValueError(f"task {task.name!r} has no examples in split {split!r}")
    numbers = grain.MapDataset.range(length)
    if settings.shuffle:
        numbers = numbers.shuffle(seed=settings.seed)
    rows = _ShardRows(source, numbers.repeat(settings.num_epochs), settings)
    collate = _Collate(task, split, tokenizer, settings)
    collated = grain.MapDataset.source(rows).batch(rows.local_size, batch_fn=collate)
    in_this_thread = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    identity = {
        "task": task.name,
        "split": split,
        "examples": length,
        "batch_size": settings.batch_size,
        "seed": settings.seed,
        "shuffle": settings.shuffle,
    }
    return BatchIterator(iter(collated.to_iter_dataset(in_this_thread)), identity)


class _Row(NamedTuple):
    number: int  # Index in the split, for messages.
    example: Example
    valid: bool


class _ShardRows:
    """One shard's rows of every global batch, batch after batch; the last batch is filled up."""

    def __init__(self, source: Source, numbers: Any, settings: BatchSettings) -> None:
        self.local_size = settings.batch_size // settings.shard_count
        self._source, self._numbers = source, numbers
        self._batch_size = settings.batch_size
        self._first = settings.shard_index * self.local_size

    def __len__(self) -> int:
        steps = -(-len(self._numbers) // self._batch_size)
        return min(steps * self.local_size, _ENDLESS)

    def __getitem__(self, index: int) -> _Row:
        step, row = divmod(int(index), self.local_size)
        position = step * self._batch_size + self._first + row
        last = len(self._numbers) - 1
        number = int(self._numbers[min(position, last)])
        return _Row(number, self._source[number], valid=position <= last)


@dataclasses.dataclass(frozen=True)
class _Collate:
    """Turns rows into a batch."""

    task: Task
    split: Split
    tokenizer: PromptTokenizer
    settings: BatchSettings

    def __call__(self, rows: Sequence[_Row]) -> Batch:
        length, cut = self.settings.prompt_length, self.settings.truncate
        prompts = [self._prompt(row) for row in rows]
        responses = [self._response(row) for row in rows]
        fill = [self.tokenizer.eos_id] * self.settings.gen_length
        steps = [self._steps(row, len(ids)) for row, ids in zip(rows, responses, strict=True)]
        unknown = [-1] * len(fill)
        return Batch(
            examples=[row.example for row in rows],
            prompts=self.tokenizer.pad_prompts(prompts, length, truncate=cut),
            prompt_lengths=np.array([len(prompt) for prompt in prompts], np.int32),
            responses=np.array([(ids + fill)[: len(fill)] for ids in responses], np.int32),
            valid=np.array([row.valid for row in rows]),
            steps=None if not any(steps) else np.array([s or unknown for s in steps], np.int32),
        )

    def _prompt(self, row: _Row) -> list[int]:
        ids = self.tokenizer.encode_prompt(self.task.prompt(row.example))
        if len(ids) > self.settings.prompt_length and not self.settings.truncate:
            raise SettingError(
                "prompt_length",
                self.settings.prompt_length,
                f"the prompt of {self._describe(row)} has {len(ids)} tokens",
                "Raise it, or set `truncate` = True to cut prompts at their start",
            )
        return ids

    def _response(self, row: _Row) -> list[int]:
        length = self.settings.gen_length
        ids = self.tokenizer.encode(self.task.target(row.example)) if length else []
        if len(ids) > length:
            raise SettingError(
                "gen_length",
                length,
                f"the target of {self._describe(row)} has {len(ids)} tokens",
                "Raise it, or leave the example out",
            )
        return ids

    def _steps(self, row: _Row, tokens: int) -> list[int] | None:
        """The step of each position of the canvas; None where the task has none."""
        length, known = self.settings.gen_length, getattr(self.task, "step_map", None)
        steps = known(row.example) if known is not None and length else None
        if steps is None:
            return None
        if len(steps) not in (tokens, tokens - 1):  # The end of the text may be left out.
            raise ValueError(
                f"step_map of {self._describe(row)} has {len(steps)} steps for a response of "
                f"{tokens} tokens; give one per token of this tokenizer, or leave it out"
            )
        return [*steps, *[max(steps, default=-1) + 1] * (length - len(steps))]

    def _describe(self, row: _Row) -> str:
        if isinstance(row.example.get("place"), str):
            return row.example["place"]
        example = f"example {row.number} ({str(row.example)[:80]}...)"
        return f"task {self.task.name!r}, split {self.split!r}, {example}"
