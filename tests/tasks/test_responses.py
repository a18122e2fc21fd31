"""Supervised data of one's own: every form, and one error that names file and line."""

import json
import re

import numpy as np
import pytest

from jax_unmask import tasks
from jax_unmask.tasks import data

GOOD = {"prompt": "1+1=", "response": "2."}


class Letters:
    """A token per character; messages are written out with their roles."""

    eos_id = 0

    def encode(self, text):
        return [ord(each) for each in text]

    def encode_prompt(self, prompt):
        if isinstance(prompt, str):
            return self.encode(prompt)
        return self.encode("".join(f"{each['role'][0]}:{each['content']};" for each in prompt))

    def pad_prompts(self, prompts, length, *, truncate=False):
        return [prompt[-length:] for prompt in prompts]


def write(path, records):
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    return str(path)


def first_batch(path, size=2, gen_length=8, prompt_length=16, **settings):
    task = tasks.create("responses", path=path, **settings)
    shapes = data.BatchSettings(size, prompt_length, gen_length, shuffle=False)
    return next(data.batches(task, "train", Letters(), shapes))


def text(ids):
    return "".join(chr(each) if each else "_" for each in ids)


def test_every_form_of_an_example(tmp_path):
    turns = [{"role": "user", "content": "1+1="}]
    path = write(
        tmp_path / "train.jsonl",
        [
            GOOD,
            {"prompt": turns, "response": "2."},
            {"messages": [*turns, {"role": "assistant", "content": "2."}], "id": 7},
        ],
    )
    batch = first_batch(path, 3)
    assert [text(each) for each in batch.prompts] == ["1+1=", "u:1+1=;", "u:1+1=;"]
    assert [text(each) for each in batch.responses] == ["2.______"] * 3
    assert batch.steps is None
    batch = first_batch(path, 3, chat=True, end="!")
    assert [text(each) for each in batch.prompts] == ["u:1+1=;"] * 3
    assert [text(each) for each in batch.responses] == ["2.!_____"] * 3


def test_a_step_map_may_leave_out_the_end(tmp_path):
    path = write(
        tmp_path / "train.jsonl",
        [GOOD | {"step_map": [1, 0]}, GOOD, GOOD | {"step_map": [0, 0, 3]}],
    )
    batch = first_batch(path, 3, gen_length=4, end="!")
    assert batch.steps.tolist() == [[1, 0, 2, 2], [-1] * 4, [0, 0, 3, 4]]


def test_parquet_holds_the_same(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    turns = [{"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2."}]
    rows = [GOOD | {"step_map": [0, 0]}, {"messages": turns}]
    rows = [
        {"messages": None, "prompt": None, "response": None, "step_map": None} | r for r in rows
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train.parquet")
    batch = first_batch(str(tmp_path), gen_length=3)
    assert [text(each) for each in batch.responses] == ["2._"] * 2
    np.testing.assert_array_equal(batch.steps, [[0, 0, 1], [-1, -1, -1]])


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"response": "2"}, "field 'prompt' (or 'messages') is missing"),
        ({"prompt": "1", "response": None}, "field 'response' is missing"),
        ({"prompt": "1", "response": 2}, "'response'"),
        ({"prompt": "1", "response": ""}, "'response'"),
        ({"prompt": [{"role": "user"}], "response": "2"}, "message 0 must have 'role'"),
        ({"prompt": 5, "response": "2"}, "'prompt'"),
        ({"messages": [{"role": "user", "content": "1"}]}, "field 'messages' must have"),
        (GOOD | {"step_map": [0, -1]}, "field 'step_map' must be"),
        ([1, 2], "found list"),
    ],
)
def test_a_bad_record_is_one_error_with_file_and_line(tmp_path, record, said):
    path = write(tmp_path / "train.jsonl", [GOOD, record])
    with pytest.raises(ValueError, match=re.escape(f"{path}, line 2: ")) as error:
        tasks.create("responses", path=path).source("train")
    assert said in str(error.value)


def test_malformed_json_is_named(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\n{'prompt': 1}\n")
    with pytest.raises(ValueError, match=r"train\.jsonl, line 3: malformed JSON"):
        tasks.create("responses", path=str(path)).source("train")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"response": "2" * 9}, "gen_length = 8"),
        ({"prompt": "1" * 17}, "prompt_length = 16"),
        ({"step_map": [0]}, "has 1 steps"),
    ],
)
def test_what_only_the_tokenizer_shows_names_the_line_too(tmp_path, changes, said):
    path = write(tmp_path / "train.jsonl", [GOOD, GOOD | {"response": "2.!"} | changes])
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        first_batch(path)
    assert f" of {path}, line 2 has " in str(error.value)
