"""Batches: their order, shards, positions, and the rows and texts that they refuse."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_unmask.prompts import Prompts
from jax_unmask.settings import SettingError
from jax_unmask.tasks import data

SIZE = 23


class Characters:
    """A tokenizer with one token per character; 0 pads and ends."""

    eos_id = 0

    def encode(self, text):
        return [ord(character) for character in text]

    encode_prompt = encode

    def pad_prompts(self, prompts, length, *, truncate=False):
        assert truncate or all(len(prompt) <= length for prompt in prompts)
        kept = [prompt[-length:] for prompt in prompts]
        tokens = np.array([[0] * (length - len(prompt)) + prompt for prompt in kept], np.int32)
        return Prompts(tokens, tokens != 0)


@dataclasses.dataclass
class Counting:
    """Examples 0, 1, ... of a given number, none of them stored."""

    size: int = SIZE
    name: str = "counting"

    def source(self, split, *, seed=0):
        return self

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return {"number": index}

    def prompt(self, example):
        return f"n{example['number']}"

    def target(self, example):
        return "x" * (example["number"] % 5)


def make(size=SIZE, **changes):
    options = {"batch_size": 6, "prompt_length": 12, "seed": 3, **changes}
    return data.batches(Counting(size), "train", Characters(), data.BatchSettings(**options))


def numbers(batch):
    return [example["number"] for example in batch.examples]


def take(iterator, count):
    return [numbers(next(iterator)) for _ in range(count)]


def flat(batches):
    return [number for batch in batches for number in batch]


def test_a_batch():
    batch = next(make(shuffle=False, batch_size=3, prompt_length=4))
    assert numbers(batch) == [0, 1, 2]
    assert batch.prompts.tokens.dtype == np.int32
    np.testing.assert_array_equal(batch.prompts.tokens[1], [0, 0, ord("n"), ord("1")])
    np.testing.assert_array_equal(batch.prompts.mask[1], [False, False, True, True])
    assert batch.responses.shape == (3, 0)
    assert batch.valid.dtype == bool and batch.valid.all()


def test_the_order_depends_on_the_seed_alone():
    assert take(make(), 9) == take(make(), 9) != take(make(seed=4), 9)
    # Nor on the batch size: the sequence of examples is the same, cut elsewhere.
    assert flat(take(make(batch_size=2), 9)) == flat(take(make(batch_size=6), 3))


def test_every_epoch_holds_every_example_once_in_an_order_of_its_own():
    drawn = flat(take(make(batch_size=1), 2 * SIZE))
    first, second = drawn[:SIZE], drawn[SIZE:]
    assert sorted(first) == sorted(second) == list(range(SIZE))
    assert first != second and first != sorted(first)


def test_a_finite_run_counts_every_example_once():
    found = list(make(num_epochs=1, shuffle=False))
    assert [batch.prompts.tokens.shape for batch in found] == [(6, 12)] * 4
    counted = np.concatenate([np.array(numbers(batch))[batch.valid] for batch in found])
    assert counted.tolist() == list(range(SIZE))
    assert not found[-1].valid[-1]
    assert len(list(make(num_epochs=2))) == 8


def test_a_limit_takes_the_first_examples():
    (batch,) = make(num_epochs=1, limit=7, batch_size=7)
    assert sorted(numbers(batch)) == list(range(7))
    assert len(list(make(num_epochs=1, limit=10**6))) == 4


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_restored_position_continues_as_if_never_interrupted(shuffle):
    options = {"shuffle": shuffle, "num_epochs": 2, "batch_size": 10}
    whole = [numbers(batch) for batch in make(**options)]
    for position in range(len(whole) + 1):
        first, second = make(**options), make(**options)
        assert take(first, position) == whole[:position]
        take(second, 2)  # Restoring forgets where it was.
        second.set_state(json.loads(json.dumps(first.get_state())))
        assert [numbers(batch) for batch in second] == whole[position:]


def test_a_position_can_be_restored_on_another_number_of_shards():
    first = make(shard_index=1, shard_count=2)
    take(first, 3)
    shards = [make(shard_index=k, shard_count=3) for k in range(3)]
    for shard in shards:
        shard.set_state(first.get_state())
    assert flat(take(shard, 1)[0] for shard in shards) == take(make(), 4)[3]


@settings(deadline=None, max_examples=8)
@given(
    shards=st.integers(1, 4),
    rows=st.integers(1, 3),
    size=st.integers(1, 30),
    seed=st.integers(0, 9),
)
def test_shards_together_are_the_batch(shards, rows, size, seed):
    options = {"size": size, "batch_size": shards * rows, "seed": seed, "num_epochs": 2}
    split = [make(shard_index=i, shard_count=shards, **options) for i in range(shards)]
    for whole, *pieces in zip(make(**options), *split, strict=True):
        assert flat(map(numbers, pieces)) == numbers(whole)
        for read in (lambda b: b.prompts.tokens, lambda b: b.prompts.mask, lambda b: b.valid):
            np.testing.assert_array_equal(np.concatenate([*map(read, pieces)]), read(whole))


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
    with pytest.raises(ValueError, match=f"{field}="):
        make(**changes).set_state(make().get_state())


def test_endless_sources_are_shuffled_without_a_permutation():
    first = make(2**31 - 1, prompt_length=20)
    drawn = flat(take(first, 20))
    assert len(set(drawn)) == len(drawn)
    assert max(drawn) > 2**30
    assert first.get_state()["examples"] == 2**31 - 1
    assert take(make(2**31 - 1, prompt_length=20, shuffle=False), 1) == [[0, 1, 2, 3, 4, 5]]


def test_responses_end_in_eos():
    batch = next(make(batch_size=5, gen_length=4, shuffle=False))
    assert batch.responses.dtype == np.int32
    assert ["".join(map(chr, row)).rstrip("\0") for row in batch.responses] == [
        "x" * k for k in range(5)
    ]


def test_a_text_over_its_length_is_named_or_cut():
    with pytest.raises(SettingError, match=r"'counting', .*'train', example 4 .* 4 tokens") as over:
        next(make(gen_length=3, shuffle=False))
    assert (over.value.key, over.value.value) == ("gen_length", 3)
    next(make(gen_length=3, limit=4, batch_size=4))
    short = {"prompt_length": 2, "num_epochs": 1, "shuffle": False}
    with pytest.raises(SettingError, match=r"example 10 .* 3 tokens.*truncate") as over:
        list(make(**short))
    assert (over.value.key, over.value.value) == ("prompt_length", 2)
    cut = list(make(**short, truncate=True))
    np.testing.assert_array_equal(cut[1].prompts.tokens[4], [ord("1"), ord("0")])


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
        make(**changes)


def test_an_empty_split_is_refused():
    with pytest.raises(ValueError, match=r"task 'counting' .*'train'"):
        make(0)
