"""Data sets in the layouts in which they are published, with a row or two each, or real ones.

`JAX_UNMASK_DATA=DIR python tests/tools/published_layouts.py` writes the files under their published
names and columns, as a copy of the repository and into a cache of the hub, reads both by the tasks,
and prints a table. Rows are the real ones where DIR has them, else those made here.
"""

import base64
import gzip
import itertools
import json
import os
import pathlib
import pickle
import tempfile
import zlib
from collections import defaultdict
from typing import Any

import pytest

import hub_cache
from jax_unmask import denoisers, tasks
from jax_unmask.tasks.base import Split, Task

Rows = list[dict[str, Any]]
Files = dict[str, Rows]
FOLDERS = {"openai/gsm8k": ("socratic",), "google-research-datasets/mbpp": ("sanitized",)}
BUDGET = 200  # Tokens of a prompt in the published experiments.


def write(path: pathlib.Path, rows: Rows) -> pathlib.Path:
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


MATH = {"problem": "Half of 1?", "level": "Level 3", "type": "Algebra", "solution": "\\boxed{0.5}"}
SOLVED = {"problem": "1+1?", "solution": "\\boxed{2}", "answer": "2"}
MBPP = {"code": "x = 1", "test_list": ["assert x == 1"]}
FULL = {"text": "One.", "test_setup_code": "", "challenge_test_list": []}
SANITIZED = {"prompt": "One.", "source_file": "", "test_imports": []}
MBPP_IDS = {
    "prompt": range(1, 11),
    "test": range(11, 511),
    "validation": range(511, 601),
    "train": range(601, 975),
}
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
TRACERL_MATH = {"question": "1+1?", "ground_truth_answer": "2"}
PROGRAM = {
    "question": "Print the number.",
    "test_input": ["1"],
    "test_output": ["1"],
    "test_time_limit": 1,
    "test_method": "stdio",
    "solution": "print(input())",
}
CONTEST = {
    "question_content": "One.",
    "starter_code": "",
    "public_test_cases": json.dumps([{"input": "1", "output": "1", "testtype": "stdin"}]),
    "private_test_cases": base64.b64encode(zlib.compress(pickle.dumps("[]"))).decode(),
    "solution": "print(1)",
}
PUBLISHED: dict[tuple[str, str], tuple[Files, dict[Split, int]]] = {
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
        {"test-00000-of-00001.parquet": [{"id": 0, "question": "?", "answer": 27.0}]},
        {"test": 1},
    ),
    ("kodcode", "KodCode/KodCode-Light-RL-10K"): (
        {"data/train-00000-of-00001.parquet": [KODCODE]},
        {"train": 1},
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
    ("primeintellect", "Gen-Verse/PrimeIntellect"): (
        {"train/PrimeIntellect.json": [PROGRAM, PROGRAM]},
        {"train": 2},
    ),
    ("primeintellect", "Gen-Verse/LiveCodeBench"): (
        {"test/LiveCodeBench.json": [PROGRAM, PROGRAM]},
        {"test": 2},
    ),
    ("math", "Gen-Verse/MATH_train"): (
        {"train/MATH_train.json": [TRACERL_MATH, TRACERL_MATH]},
        {"train": 2},
    ),
    ("math500", "Gen-Verse/MATH500"): (
        {"test/MATH500.json": [TRACERL_MATH, TRACERL_MATH]},
        {"test": 2},
    ),
    ("countdown", "Jiayi-Pan/Countdown-Tasks-3to4"): (
        {
            "data/train-00000-of-00001.parquet": [{"target": 50, "nums": [15, 44, 79]}] * 501
            + [{"target": 5, "nums": [1, 1, 1, 2]}]
        },
        {"test": 500},
    ),
}
"""Files of each task and hub name with their rows, and the number of problems of each split."""


def real(data: pathlib.Path) -> dict[tuple[str, str], Files]:
    """The files of the layouts whose real rows are at hand."""

    def read(name: str) -> Rows:
        with gzip.open(data / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    part = "{}-00000-of-00001.parquet"
    subjects: Files = defaultdict(list)
    for split in ("train", "test"):
        for row in read(f"math/{split}"):
            subject = row["type"].lower().replace(" & ", "_and_").replace(" ", "_")
            subjects[f"{subject}/{part.format(split)}"].append(row)
    mbpp: Files = defaultdict(list)
    for folder, name in (("full", "mbpp"), ("sanitized", "sanitized-mbpp")):
        for row in read(f"mbpp/{name}"):
            split = next(k for k, ids in MBPP_IDS.items() if row["task_id"] in ids)
            mbpp[f"{folder}/{part.format(split)}"].append(row)
    return {
        ("gsm8k", "openai/gsm8k"): {
            f"main/{part.format(split)}": read(f"gsm8k/{split}") for split in ("train", "test")
        },
        ("math", "EleutherAI/hendrycks_math"): subjects,
        ("math500", "HuggingFaceH4/MATH-500"): {"test.jsonl": read("math/math500")},
        ("humaneval", "openai/openai_humaneval"): {
            f"openai_humaneval/{part.format('test')}": read("humaneval/HumanEval")
        },
        ("mbpp", "google-research-datasets/mbpp"): mbpp,
    }


def main() -> None:
    """Prints the table."""
    data = pathlib.Path(os.environ["JAX_UNMASK_DATA"])
    rows = real(data)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as made_here:
        top = pathlib.Path(made_here)
        tokenizer = _tokenizer(data / "tokenizer_sdar_qwen3", top / "model")
        hub_cache.use(patch, top / "cache")
        for (task, hub), (made, sizes) in PUBLISHED.items():
            if "/" not in hub:  # No data set of the hub.
                continue
            files = {**made, **rows.get((task, hub), {})}
            copy = top / "copies" / hub
            cached = hub_cache.folder(top / "cache", hub)
            for place in (copy, cached):
                for file, content in files.items():
                    write(place / file, content)
            is_default = getattr(tasks.TASKS(task), "hub", None) == hub
            for folder, split in itertools.product(("", *FOLDERS.get(hub, ())), sizes):
                name = "/".join(filter(None, (hub, folder)))
                by_default = is_default and not folder
                by_name = _task(task, split, None if by_default else f"hub:{name}", top)
                by_copy = _task(task, split, copy / folder, top)
                counts = [len(each.source(split)) for each in (by_name, by_copy)]
                is_real = any(file.startswith(folder) for file in rows.get((task, hub), {}))
                cells = [
                    *(f"`{task}`", f"`{name}`", split, *map(str, counts)),
                    *_tokens(by_copy, split, tokenizer),
                    "real" if is_real else "made",
                ]
                print("| " + " | ".join(cells) + " |", flush=True)


def _task(name: str, split: Split, path: Any, top: pathlib.Path) -> Task:
    settings = tasks.settings(name)
    more = {"prompt_style": "evaluation"} if split == "test" and "prompt_style" in settings else {}
    if path is None and "data_dir" in settings:
        more["data_dir"] = str(top / "tfds")
    return tasks.create(name, path=path, **more)


def _tokens(task: Task, split: Split, tokenizer: denoisers.Tokenizer) -> list[str]:
    source = task.source(split)
    prompts = (task.prompt(source[k]) for k in range(len(source)))
    lengths = [len(tokenizer.encode_prompt(prompt)) for prompt in prompts]
    return [str(max(lengths)), str(sum(length > BUDGET for length in lengths))]


def _tokenizer(source: pathlib.Path, directory: pathlib.Path) -> denoisers.Tokenizer:
    directory.mkdir()
    packed = (source / "tokenizer.json.gz").read_bytes()
    (directory / "tokenizer.json").write_bytes(gzip.decompress(packed))
    for name in ("tokenizer_config.json", "chat_template.jinja", "config.json"):
        (directory / name).write_bytes((source / name).read_bytes())
    return denoisers.load_tokenizer(directory)


if __name__ == "__main__":
    main()
