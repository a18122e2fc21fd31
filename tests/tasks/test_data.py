import dataclasses
import json
import pathlib
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_unmask import tasks
from jax_unmask.rollout.trajectory import Prompts
from jax_unmask.tasks import data

SAMPLES = pathlib.Path(__file__).parents[1] / "fixtures" / "samples"
SIZE = 23


class Characters:
    """A tokenizer with one token per character; 0 pads and ends."""

    eos_id = 0

    def encode(self, text):
        return [ord(character) for character in text]

    def encode_prompt(self, prompt):
        if isinstance(prompt, str):
            return self.encode(prompt)
        opening = prompt[-1]["content"] if prompt[-1]["role"] == "assistant" else ""
        turns = [turn for turn in prompt if turn["role"] != "assistant"]
        text = "".join(f"[{turn['role']}]{turn['content']}" for turn in turns)
        return self.encode(text + "[assistant]" + opening)

    def pad_prompts(self, prompts, length, *, truncate=False):
        assert truncate or all(len(prompt) <= length for prompt in prompts)
        kept = [prompt[-length:] for prompt in prompts]
        rows = [[self.eos_id] * (length - len(prompt)) + prompt for prompt in kept]
        real = [length - len(prompt) for prompt in kept]
        return Prompts(
            tokens=np.array(rows, np.int32),
            mask=np.arange(length)[None] >= np.array(real)[:, None],
        )


@dataclasses.dataclass
class Counting:
    """Examples 0, 1, ... of a given number."""

    size: int = SIZE
    name: str = "counting"

    def source(self, split, *, seed=0):
        return [{"number": number} for number in range(self.size)]

    def prompt(self, example):
        return f"n{example['number']}"

    def target(self, example):
        return "x" * (example["number"] % 5)


class Endless(Counting):
    """2**31 - 1 examples, none of them stored."""

    def source(self, split, *, seed=0):
        class Source:
            def __len__(self):
                return 2**31 - 1

            def __getitem__(self, index):
                return {"number": index}

        return Source()


def prompt_batches(task=None, **changes):
    options = {"batch_size": 6, "prompt_length": 12, "seed": 3, **changes}
    settings = data.BatchSettings(**options)
    return data.batches(task or Counting(), "train", Characters(), settings)


def numbers(batch):
    return [example["number"] for example in batch.examples]


def take(iterator, count):
    return [numbers(next(iterator)) for _ in range(count)]


def test_a_batch():
    batch = next(prompt_batches(shuffle=False, batch_size=3, prompt_length=4))
    assert numbers(batch) == [0, 1, 2]
    assert batch.prompts.tokens.dtype == np.int32
    np.testing.assert_array_equal(batch.prompts.tokens[1], [0, 0, ord("n"), ord("1")])
    np.testing.assert_array_equal(batch.prompts.mask[1], [False, False, True, True])
    assert batch.valid.dtype == bool
    assert batch.valid.all()


def test_the_order_depends_on_the_seed_alone():
    assert take(prompt_batches(), 9) == take(prompt_batches(), 9)
    assert take(prompt_batches(), 9) != take(prompt_batches(seed=4), 9)
    # Nor on the batch size: the sequence of examples is the same, cut elsewhere.
    small = [number for batch in take(prompt_batches(batch_size=2), 9) for number in batch]
    large = [number for batch in take(prompt_batches(batch_size=6), 3) for number in batch]
    assert small == large


def test_every_epoch_holds_every_example_once_in_an_order_of_its_own():
    flat = [
        number for batch in take(prompt_batches(batch_size=1), 2 * SIZE) for [number] in [batch]
    ]
    assert sorted(flat[:SIZE]) == sorted(flat[SIZE:]) == list(range(SIZE))
    assert flat[:SIZE] != flat[SIZE:]
    assert flat[:SIZE] != sorted(flat[:SIZE])


def test_a_finite_run_counts_every_example_once():
    batches = list(prompt_batches(num_epochs=1, shuffle=False))
    assert [len(batch.examples) for batch in batches] == [6] * 4
    assert [batch.prompts.tokens.shape for batch in batches] == [(6, 12)] * 4
    counted = [
        number
        for batch in batches
        for number, valid in zip(numbers(batch), batch.valid, strict=True)
        if valid
    ]
    assert counted == list(range(SIZE))
    assert not batches[-1].valid[-1]
    assert len(list(prompt_batches(num_epochs=2))) == 8


def test_a_limit_takes_the_first_examples():
    batches = list(prompt_batches(num_epochs=1, limit=7, batch_size=7))
    assert sorted(numbers(batches[0])) == list(range(7))
    assert len(batches) == 1
    assert len(list(prompt_batches(num_epochs=1, limit=10**6))) == 4


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_restored_position_continues_as_if_never_interrupted(shuffle):
    options = {"shuffle": shuffle, "num_epochs": 2}
    whole = [numbers(batch) for batch in prompt_batches(**options)]
    for position in range(len(whole) + 1):
        first = prompt_batches(**options)
        assert take(first, position) == whole[:position]
        state = json.loads(json.dumps(first.get_state()))
        second = prompt_batches(**options)
        take(second, min(2, len(whole)))  # Restoring forgets where it was.
        second.set_state(state)
        assert [numbers(batch) for batch in second] == whole[position:]


def test_a_position_can_be_restored_on_another_number_of_shards():
    whole = take(prompt_batches(), 5)
    first = prompt_batches(shard_index=1, shard_count=2)
    take(first, 3)
    state = first.get_state()
    rows = []
    for shard in range(3):
        part = prompt_batches(shard_index=shard, shard_count=3)
        part.set_state(state)
        rows += take(part, 1)[0]
    assert rows == whole[3]


@settings(deadline=None, max_examples=25)
@given(
    shards=st.integers(1, 4),
    rows=st.integers(1, 3),
    size=st.integers(1, 30),
    seed=st.integers(0, 9),
)
def test_shards_together_are_the_batch(shards, rows, size, seed):
    options = {"batch_size": shards * rows, "seed": seed, "num_epochs": 2}
    whole = list(prompt_batches(Counting(size), **options))
    parts = [
        list(prompt_batches(Counting(size), shard_index=i, shard_count=shards, **options))
        for i in range(shards)
    ]
    assert all(len(part) == len(whole) for part in parts)
    for step, batch in enumerate(whole):
        pieces = [part[step] for part in parts]
        assert [number for piece in pieces for number in numbers(piece)] == numbers(batch)
        for field in ("tokens", "mask"):
            np.testing.assert_array_equal(
                np.concatenate([getattr(piece.prompts, field) for piece in pieces]),
                getattr(batch.prompts, field),
            )
        np.testing.assert_array_equal(np.concatenate([p.valid for p in pieces]), batch.valid)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"seed": 4}, "seed"),
        ({"batch_size": 12}, "batch_size"),
        ({"shuffle": False}, "shuffle"),
        ({"limit": 9}, "examples"),
    ],
)
def test_a_position_of_other_data_is_refused(changes, field):
    state = prompt_batches().get_state()
    with pytest.raises(ValueError, match=f"saved data position has {field}="):
        prompt_batches(**changes).set_state(state)


def test_endless_sources_are_shuffled_without_a_permutation():
    start = time.perf_counter()
    first = prompt_batches(Endless(), prompt_length=20)
    drawn = [number for batch in take(first, 20) for number in batch]
    assert time.perf_counter() - start < 5
    assert len(set(drawn)) == len(drawn)
    assert max(drawn) > 2**30
    assert first.get_state()["examples"] == 2**31 - 1
    ordered = prompt_batches(Endless(), prompt_length=20, shuffle=False)
    assert take(ordered, 1) == [[0, 1, 2, 3, 4, 5]]


def sft_batches(task=None, **changes):
    options = {"batch_size": 5, "gen_length": 4, "shuffle": False, **changes}
    return prompt_batches(task, **options)


def test_responses_end_in_eos():
    batch = next(sft_batches())
    assert batch.responses.dtype == np.int32
    x = ord("x")
    np.testing.assert_array_equal(
        batch.responses, [[0] * 4, [x, 0, 0, 0], [x, x, 0, 0], [x, x, x, 0], [x] * 4]
    )
    assert batch.prompts.tokens.shape == (5, 12)
    assert numbers(batch) == [0, 1, 2, 3, 4]


def test_a_target_over_the_canvas_is_named():
    with pytest.raises(
        ValueError, match=r"target of task 'counting', split 'train', example 4 .* has 4 tokens.*=3"
    ):
        next(sft_batches(gen_length=3))
    next(sft_batches(gen_length=3, limit=4, batch_size=4))


def test_a_prompt_over_the_budget_is_named_or_cut():
    with pytest.raises(ValueError, match=r"example 10 .* has 3 tokens.*prompt_length=2; raise"):
        list(prompt_batches(prompt_length=2, num_epochs=1, shuffle=False))
    batches = list(prompt_batches(prompt_length=2, num_epochs=1, shuffle=False, truncate=True))
    np.testing.assert_array_equal(batches[1].prompts.tokens[4], [ord("1"), ord("0")])


def test_batches_of_the_sample_files():
    task = tasks.create("gsm8k", path=SAMPLES / "gsm8k", prompt_style="evaluation")
    settings = data.BatchSettings(batch_size=4, prompt_length=600, num_epochs=1)
    batches = list(data.batches(task, "test", Characters(), settings))
    assert sum(batch.valid.sum() for batch in batches) == 7
    for batch in batches:
        right = [task.target(example) for example in batch.examples]
        assert task.check_batch(batch.examples, right) == [1.0] * 4
        text = "".join(map(chr, batch.prompts.tokens[0][batch.prompts.mask[0]]))
        assert text.endswith(f"{batch.examples[0]['question']}[assistant]<reasoning>")


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 0},
        {"num_epochs": 0},
        {"limit": 0},
        {"prompt_length": 0},
        {"gen_length": -1},
        {"seed": -1},
        {"shard_count": 4},
        {"shard_index": 2, "shard_count": 2},
    ],
)
def test_impossible_settings(changes):
    name, value = next(iter(changes.items()))
    with pytest.raises(ValueError, match=f"{name}={value}"):
        prompt_batches(**changes)


def test_an_empty_split_is_refused():
    with pytest.raises(ValueError, match="'counting' has no examples in split 'train'"):
        prompt_batches(Counting(0))
