"""Tasks over files: a class of one's own, and the layouts in which data sets are published."""

import base64
import json
import pickle
import sys
import types
import zlib

import pytest

import hub_cache
from jax_unmask import tasks
from jax_unmask.tasks.from_files import FileTask


class Capitals(FileTask):
    name = "capitals"
    fields = ("country", "capital")

    def prompt(self, example):
        return f"What is the capital of {example['country']}?"

    def target(self, example):
        return example["capital"]

    def check(self, example, response):
        return float(response.strip() == example["capital"])


ROWS = [{"country": f"Land {k}", "capital": f"Town {k}"} for k in range(20)]


def write(path, rows):
    """Writes rows in the format that the name of a file says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows if len(rows) > 1 else rows[0], indent=1))
    else:
        # As editors under Windows write them.
        path.write_text("\r\n".join(map(json.dumps, rows)), encoding="utf-8-sig")
    return path


def every(source):
    return [source[k] for k in range(len(source))]


def test_a_task_is_a_class_and_a_line(tmp_path, monkeypatch):
    module = types.ModuleType("capitals")
    module.Capitals = Capitals
    monkeypatch.setitem(sys.modules, "capitals", module)
    for name in ("train", "test"):
        write(tmp_path / f"{name}.jsonl", ROWS)
    task = tasks.create("capitals.Capitals", path=tmp_path, hold_out=15)
    assert list(tasks.settings("capitals.Capitals")) == ["path", "difficulty", "hold_out"]
    for split, size in {"train": 18, "validation": 2, "test": 20}.items():
        examples = every(task.source(split))
        assert len(examples) == size
        assert task.check_batch(examples, [task.target(e) for e in examples]) == [1.0] * size
    with pytest.raises(ValueError, match=r"path.*'capitals'"):
        Capitals()


@pytest.mark.parametrize(
    "names",
    [
        ("train.jsonl", "validation.jsonl", "test.jsonl"),
        ("train.json", "val.json", "test.json"),
        ("data/train-00000-of-00001-0a1b.parquet", "data/valid.parquet", "data/test.parquet"),
        ("x/train.parquet", "x/dev.parquet", "x/test.parquet"),
        ("train/a/1.json", "validation/a/1.json", "test/a/1.json"),
        ("capitals/train.jsonl", "capitals/validation.jsonl", "capitals/test.jsonl"),
    ],
)
def test_places_of_splits(tmp_path, names):
    for name, row in zip(names, ROWS, strict=False):
        write(tmp_path / name, [row])
    write(tmp_path / "other" / "notes.jsonl", ROWS)
    for split, row in zip(("train", "validation", "test"), ROWS, strict=False):
        assert every(Capitals(tmp_path).source(split)) == [row]


def test_a_split_in_parts(tmp_path):
    parts = [tmp_path / "data" / f"train-0000{k}-of-00002.parquet" for k in range(2)]
    write(parts[1], ROWS[12:])
    with pytest.raises(FileNotFoundError, match=r"1 of the 2 parts .*00000 is missing"):
        Capitals(tmp_path).source("train")
    write(parts[0], ROWS[:12])
    assert every(Capitals(tmp_path).source("train")) == ROWS


def test_files_that_cannot_be_read(tmp_path):
    file = write(tmp_path / "train.parquet", [{"country": "x"}])
    with pytest.raises(ValueError, match=r"train.parquet, row 0: field 'capital' is missing"):
        Capitals(tmp_path).source("train")
    file.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"train.parquet is not a Parquet file"):
        Capitals(tmp_path).source("train")
    for folder in "ab":
        write(tmp_path / folder / "test.jsonl", ROWS)
    with pytest.raises(FileNotFoundError, match=rf"several folders \(a, b\).*{tmp_path}/a"):
        Capitals(tmp_path).source("test")
    assert len(Capitals(tmp_path / "b").source("test")) == 20
    with pytest.raises(FileNotFoundError, match="hold_out=15"):
        Capitals(tmp_path).source("validation")


def test_a_data_set_of_the_hub_is_read_from_its_cache(tmp_path, monkeypatch):
    hub_cache.use(monkeypatch, tmp_path)
    write(hub_cache.folder(tmp_path, "a/b") / "x" / "test.jsonl", ROWS)
    for path in ("hub:a/b", "hub:a/b/x"):
        assert len(Capitals(path).source("test")) == 20
    with pytest.raises(FileNotFoundError, match=r"'hub:a/c'.*hf download .*a/c"):
        Capitals("hub:a/c").source("test")


MATH = {"problem": "Half of 1?", "level": "Level 3", "type": "Algebra", "solution": "\\boxed{0.5}"}
SOLVED = {"problem": "1+1?", "solution": "\\boxed{2}", "answer": "2"}
MBPP = {"code": "x = 1", "test_list": ["assert x == 1"]}
FULL = {"text": "One.", "test_setup_code": "", "challenge_test_list": []}
SANITIZED = {"prompt": "One.", "source_file": "", "test_imports": []}
IDS = {"prompt": (1, 2, 3), "test": (11,), "validation": (511,), "train": (601,)}
CHECKED = {"prompt": "def f():\n", "entry_point": "f", "canonical_solution": "    return 1"}
SUBJECTS = ("algebra", "counting_and_probability", "geometry", "intermediate_algebra")
INFO = [
    {
        "function_name": "f",
        "function_declaration": "def f():",
        "docstring": "",
        "parameter_list": "()",
    }
]
KODCODE = {"question": "One.", "solution": "def f():\n    return 1", "test": "", "test_info": INFO}
LEETCODE = dict.fromkeys(("starter_code", "prompt", "completion", "entry_point", "test"), "x")
CONTEST = {
    "question_content": "One.",
    "starter_code": "",
    "public_test_cases": json.dumps([{"input": "1", "output": "1", "testtype": "stdin"}]),
    "private_test_cases": base64.b64encode(zlib.compress(pickle.dumps("[]"))).decode(),
    "solution": "print(1)",
}
# Task and hub name: files, each with its rows; and the number of problems of each split.
PUBLISHED = {
    ("gsm8k", "openai/gsm8k"): (
        {
            f"{folder}/{split}-00000-of-00001.parquet": [
                {"question": f"{split} {folder}?", "answer": "#### 1"}
            ]
            for folder in ("main", "socratic")
            for split in ("train", "test")
        },
        {"train": 1, "test": 1},
    ),
    ("math", "EleutherAI/hendrycks_math"): (
        {
            f"{subject}/{split}-00000-of-00001.parquet": [MATH]
            for subject in SUBJECTS
            for split in ("train", "test")
        },
        {"train": 4, "test": 4},
    ),
    ("math", "the tarball"): (
        {
            f"{split}/{s}/{k}.json": [MATH]
            for s in SUBJECTS
            for split in ("train", "test")
            for k in "12"
        },
        {"train": 8, "test": 8},
    ),
    ("math500", "HuggingFaceH4/MATH-500"): ({"test.jsonl": [SOLVED]}, {"test": 1}),
    ("humaneval", "openai/openai_humaneval"): (
        {"openai_humaneval/test-00000-of-00001.parquet": [CHECKED | {"task_id": "0", "test": ""}]},
        {"test": 1},
    ),
    ("mbpp", "google-research-datasets/mbpp"): (
        {
            f"{folder}/{split}-00000-of-00001.parquet": [
                {"task_id": k, **MBPP, **more} for k in IDS[split]
            ]
            for folder, more in (("full", FULL), ("sanitized", SANITIZED))
            for split in IDS
        },
        {"train": 1, "validation": 1, "test": 1},
    ),
    ("aime24", "HuggingFaceH4/aime_2024"): (
        {"data/train-00000-of-00001.parquet": [SOLVED | {"answer": "204", "year": "2024"}]},
        {"test": 1},
    ),
    ("aime24", "Maxwell-Jia/AIME_2024"): (
        {
            "aime_2024_problems.parquet": [
                {"ID": "I", "Problem": "?", "Solution": "", "Answer": 204}
            ]
        },
        {"test": 1},
    ),
    ("aime24", "math-ai/aime24"): (
        {"data/test-00000-of-00001.parquet": [{"problem": "?", "solution": "\\boxed{204}"}]},
        {"test": 1},
    ),
    ("aime25", "math-ai/aime25"): ({"test.jsonl": [{"problem": "?", "answer": "70"}]}, {"test": 1}),
    ("aime25", "opencompass/AIME2025"): (
        {f"aime2025-{k}.jsonl": [{"question": "?", "answer": "70"}] for k in ("I", "II")},
        {"test": 2},
    ),
    ("amc23", "math-ai/amc23"): (
        {"data/test-00000-of-00001.parquet": [{"id": 0, "question": "?", "answer": 27.0}]},
        {"test": 1},
    ),
    ("kodcode", "KodCode/KodCode-Light-RL-10K"): (
        {f"data/train-0000{k}-of-00002.parquet": [KODCODE] for k in range(2)},
        {"train": 2},
    ),
    ("leetcode", "newfacade/LeetCodeDataset"): (
        {
            f"LeetCodeDataset-{split}.jsonl": [LEETCODE | {"problem_description": split}]
            for split in ("train", "test")
        },
        {"train": 1, "test": 1},
    ),
    ("livecodebench", "livecodebench/code_generation_lite"): (
        {f"test{number}.jsonl": [CONTEST] for number in ("", 2, 6)},
        {"test": 3},
    ),
    ("countdown", "Jiayi-Pan/Countdown-Tasks-3to4"): (
        {
            "data/train-00000-of-00001.parquet": [{"target": 50, "nums": [15, 44, 79]}] * 501
            + [{"target": 5, "nums": [1, 1, 1, 2]}]
        },
        {"test": 500},
    ),
}


@pytest.mark.parametrize(("name", "hub"), PUBLISHED)
def test_published_layouts(tmp_path, monkeypatch, name, hub):
    files, sizes = PUBLISHED[name, hub]
    # As a copy and by the hub's name; a directory may hold several data sets.
    (tmp_path / "copy" / name).mkdir(parents=True)
    places = [tmp_path / "copy" / name, hub_cache.folder(tmp_path / "cache", hub)]
    for place in places:
        for file, rows in files.items():
            write(place / file, rows)
    hub_cache.use(monkeypatch, tmp_path / "cache")
    paths = [places[0], tmp_path / "copy", f"hub:{hub}"]
    if getattr(tasks.TASKS(name), "hub", None) == hub and name != "gsm8k":
        paths.append(None)
    for path in paths if "/" in hub else paths[:2]:
        task = tasks.create(name, path=path)
        for split, size in sizes.items():
            source = task.source(split)
            assert len(source) == size
            assert task.prompt(source[0]) and task.target(source[0])


def test_another_configuration_by_its_folder(tmp_path):
    files, _ = PUBLISHED["gsm8k", "openai/gsm8k"]
    for file, rows in files.items():
        write(tmp_path / file, rows)
    for folder, task in (("main", tmp_path), ("socratic", tmp_path / "socratic")):
        found = tasks.create("gsm8k", path=task).source("test")
        assert found[0]["question"] == f"test {folder}?"
    files, _ = PUBLISHED["mbpp", "google-research-datasets/mbpp"]
    for file, rows in files.items():
        write(tmp_path / file, rows)
    assert "text" not in tasks.create("mbpp", path=tmp_path / "sanitized").source("test")[0]
