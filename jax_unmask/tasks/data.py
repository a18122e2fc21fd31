"""Batches of prompts, and of prompts with responses, whose position can be saved and restored.

The order of the examples depends on the seed and on the step only: not on the number of hosts that
share a batch, nor on where a run was interrupted. Shuffling computes each position when it is asked
for (grain's index shuffle), so the 2**31 examples of a generated task cost nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from jaxtyping import Bool, Int

from jax_unmask.tasks.base import Example, Source, Split, Task

if TYPE_CHECKING:
    from jax_unmask.rollout.trajectory import Prompts

State = dict[str, Any]

# Rows of a pipeline without end. Below sys.maxsize, which grain gives to an endless repetition: it
# rounds lengths in floating point, and would round that one up to more than an index can hold.
_ENDLESS = 2**62


class Tokenizer(Protocol):
    """What batches need of a tokenizer."""

    eos_id: int

    def encode_prompt(self, prompt: str | list[dict[str, str]]) -> list[int]: ...

    def encode(self, text: str) -> list[int]: ...

    def pad_prompts(
        self, prompts: Sequence[Sequence[int]], length: int, *, truncate: bool = False
    ) -> Prompts: ...


@dataclasses.dataclass(frozen=True)
class PromptBatch:
    """B examples with their prompts.

    Attributes:
        examples: the task's examples, for `Task.check_batch`.
        prompts: left-padded prompts, tokens and mask [B, P] as NumPy arrays.
        valid: False in the rows that only fill up the last batch of the last epoch; they repeat
            the last example and must not be counted.
    """

    examples: list[Example]
    prompts: Prompts
    valid: Bool[np.ndarray, " B"]


@dataclasses.dataclass(frozen=True)
class SftBatch(PromptBatch):
    """B examples with their prompts and right responses.

    Attributes:
        responses: target tokens, filled up with EOS tokens that count as response.
    """

    responses: Int[np.ndarray, "B L"]


Batch = TypeVar("Batch", bound=PromptBatch)


class BatchIterator(Generic[Batch]):
    """Iterator over batches that knows its position.

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
        """The position: what the next batch will be."""
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


class _Row(NamedTuple):
    number: int
    example: Example
    valid: bool


def prompt_batches(
    task: Task,
    split: Split,
    tokenizer: Tokenizer,
    *,
    batch_size: int,
    prompt_length: int,
    seed: int = 0,
    num_epochs: int | None = None,
    shuffle: bool = True,
    truncate: bool = False,
    limit: int | None = None,
    shard_index: int = 0,
    shard_count: int = 1,
    prefetch: int = 0,
) -> BatchIterator[PromptBatch]:
    """Batches of prompts of a task's split.

    Args:
        task: the task.
        split: the split.
        tokenizer: encodes and pads the prompts.
        batch_size: rows of a global batch.
        prompt_length: prompt budget P in tokens.
        seed: order of the examples; for tasks that generate their problems, the problems too.
        num_epochs: passes over the split; None goes on forever. A batch may hold the end of one
            epoch and the beginning of the next.
        shuffle: shuffle anew in each epoch.
        truncate: cut prompts over the budget at their start (as the published experiments do)
            instead of raising.
        limit: use only so many examples of the split, its first ones.
        shard_index: which part of every batch to give; part i of n holds the rows
            `i * batch_size / n` up to `(i + 1) * batch_size / n`.
        shard_count: number of parts n (hosts); must divide `batch_size`.
        prefetch: batches to prepare ahead in a background thread; 0 works in the caller's.

    Raises:
        ValueError: for impossible settings or an empty split; when iterating, for a prompt over
            the budget without `truncate` (the message names the example).
    """

    def collate(rows: Sequence[_Row]) -> PromptBatch:
        return PromptBatch(
            examples=[row.example for row in rows],
            prompts=_encode_prompts(task, split, tokenizer, rows, prompt_length, truncate),
            valid=np.array([row.valid for row in rows]),
        )

    order = _Order(batch_size, seed, num_epochs, shuffle, limit, shard_index, shard_count, prefetch)
    return _batches(task, split, order, prompt_length, collate)


def sft_batches(
    task: Task,
    split: Split,
    tokenizer: Tokenizer,
    *,
    batch_size: int,
    prompt_length: int,
    gen_length: int,
    seed: int = 0,
    num_epochs: int | None = None,
    shuffle: bool = True,
    truncate: bool = False,
    limit: int | None = None,
    shard_index: int = 0,
    shard_count: int = 1,
    prefetch: int = 0,
) -> BatchIterator[SftBatch]:
    """Batches of prompts and right responses of a task's split.

    Args: as of `prompt_batches`, and

        gen_length: canvas length L; shorter targets are filled up with EOS.

    Raises:
        ValueError: as `prompt_batches`, and for a target of more than `gen_length` tokens (the
            message names the example).
    """
    if gen_length < 1:
        raise ValueError(f"gen_length={gen_length} must be at least 1")

    def collate(rows: Sequence[_Row]) -> SftBatch:
        return SftBatch(
            examples=[row.example for row in rows],
            prompts=_encode_prompts(task, split, tokenizer, rows, prompt_length, truncate),
            valid=np.array([row.valid for row in rows]),
            responses=_encode_responses(task, split, tokenizer, rows, gen_length),
        )

    order = _Order(batch_size, seed, num_epochs, shuffle, limit, shard_index, shard_count, prefetch)
    return _batches(task, split, order, prompt_length, collate)


def _encode_prompts(
    task: Task,
    split: Split,
    tokenizer: Tokenizer,
    rows: Sequence[_Row],
    prompt_length: int,
    truncate: bool,
) -> Prompts:
    encoded = [tokenizer.encode_prompt(task.prompt(row.example)) for row in rows]
    for row, ids in zip(rows, encoded, strict=True):
        if len(ids) > prompt_length and not truncate:
            raise ValueError(
                f"prompt of {_describe(task, split, row)} has {len(ids)} tokens, more than "
                f"prompt_length={prompt_length}; raise prompt_length, or set truncate=True to cut "
                "prompts at their start"
            )
    return tokenizer.pad_prompts(encoded, prompt_length, truncate=truncate)


def _encode_responses(
    task: Task, split: Split, tokenizer: Tokenizer, rows: Sequence[_Row], gen_length: int
) -> Int[np.ndarray, "B L"]:
    responses = np.full((len(rows), gen_length), tokenizer.eos_id, np.int32)
    for response, row in zip(responses, rows, strict=True):
        ids = tokenizer.encode(task.target(row.example))
        if len(ids) > gen_length:
            raise ValueError(
                f"target of {_describe(task, split, row)} has {len(ids)} tokens, more than "
                f"gen_length={gen_length}; raise gen_length or leave the example out"
            )
        response[: len(ids)] = ids
    return responses


def _describe(task: Task, split: Split, row: _Row) -> str:
    return f"task {task.name!r}, split {split!r}, example {row.number} ({str(row.example)[:80]}...)"


@dataclasses.dataclass(frozen=True)
class _Order:
    """Which rows come when, and on which shard."""

    batch_size: int
    seed: int
    num_epochs: int | None
    shuffle: bool
    limit: int | None
    shard_index: int
    shard_count: int
    prefetch: int

    def __post_init__(self) -> None:
        for name in ("batch_size", "num_epochs", "limit", "shard_count"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
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
        if self.prefetch < 0:
            raise ValueError(f"prefetch={self.prefetch} must not be negative")


class _Numbered:
    """Examples with their index in the split, for messages."""

    def __init__(self, source: Source, length: int) -> None:
        self._source = source
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[int, Example]:
        return int(index), self._source[int(index)]


class _ShardRows:
    """One shard's rows of every global batch, batch after batch; the last batch is filled up."""

    def __init__(self, rows: Any, order: _Order) -> None:
        self._rows = rows
        self._batch_size = order.batch_size
        self._local_size = order.batch_size // order.shard_count
        self._first = order.shard_index * self._local_size

    def __len__(self) -> int:
        steps = -(-len(self._rows) // self._batch_size)
        return min(steps * self._local_size, _ENDLESS)

    def __getitem__(self, index: int) -> _Row:
        step, row = divmod(int(index), self._local_size)
        position = step * self._batch_size + self._first + row
        last = len(self._rows) - 1
        number, example = self._rows[min(position, last)]
        return _Row(number, example, valid=position <= last)


def _batches(
    task: Task,
    split: Split,
    order: _Order,
    prompt_length: int,
    collate: Callable[[Sequence[_Row]], Batch],
) -> BatchIterator[Batch]:
    import grain  # Slow to import; the tasks themselves do without it.

    if prompt_length < 1:
        raise ValueError(f"prompt_length={prompt_length} must be at least 1")
    source = task.source(split, seed=order.seed)
    length = len(source) if order.limit is None else min(order.limit, len(source))
    if length < 1:
        raise ValueError(f"task {task.name!r} has no examples in split {split!r}")
    rows = grain.MapDataset.source(_Numbered(source, length))
    if order.shuffle:
        rows = rows.shuffle(seed=order.seed)
    rows = rows.repeat(order.num_epochs)
    local_size = order.batch_size // order.shard_count
    batches = (
        grain.MapDataset.source(_ShardRows(rows, order))
        .batch(local_size, batch_fn=collate)
        .to_iter_dataset(
            grain.ReadOptions(
                num_threads=min(order.prefetch, 1), prefetch_buffer_size=order.prefetch
            )
        )
    )
    identity = {
        "task": task.name,
        "split": split,
        "examples": length,
        "batch_size": order.batch_size,
        "seed": order.seed,
        "shuffle": order.shuffle,
    }
    return BatchIterator(iter(batches), identity)
