"""Damaged files of users: each loads, or gives one error that names the file or its directory.

Bytes are flipped, cut, doubled and overwritten; values in JSON, at any depth and in the headers of
safetensors too, get other types and absurd sizes, or go.
"""

import contextlib
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import struct
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from jax_unmask import denoisers, policies, tasks
from jax_unmask.denoisers.pretrained import read_config
from jax_unmask.runtime.checkpoints import CheckpointError, Checkpoints

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
SECONDS = 10
# Beyond what the process has: no file of a few kilobytes may ask for more.
MORE_BYTES = 4 << 30
ODD_VALUES = (
    *(None, True, False, 0, 1, -1, 3, 1.5, 1e308, 10**9, 2**63, -(2**40), 10**400, float("nan")),
    *("", "x", "é\x00\x1b[31m", "9" * 5000, [], {}, [1], [[]], {"a": 1}, [None] * 3),
)
TASKS = {
    "gsm8k": "train.jsonl",
    "math": "train.jsonl",
    "math500": "math500.jsonl",
    "countdown": "cd3_test.jsonl",
    "humaneval": "HumanEval.jsonl",
    "mbpp": "mbpp.jsonl",
    "kodcode": "train.jsonl",
    "leetcode": "train.jsonl",
    "livecodebench": "test.jsonl",
}
FOLDERS = {"math500": "competitions", "livecodebench": "programs/livecodebench"}


@contextlib.contextmanager
def limits():
    """Ends what takes more processor time than `SECONDS`, or more memory than `MORE_BYTES`."""

    def stop(*_):
        raise AssertionError(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGPROF, stop)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MORE_BYTES, hard))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.signal(signal.SIGPROF, signal.SIG_IGN)  # Not in here, and not in a later test.
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGPROF, before)


def damaged_bytes(draw: random.Random, content: bytes) -> bytes:
    """Bytes with one damage."""
    data = bytearray(content)
    start = draw.randrange(len(data) + 1)
    end = min(len(data), start + draw.choice((1, 8, 100, len(data))))
    how = draw.choice(("flip", "flip", "cut", "lose", "double", "zero", "random", "insert"))
    if how == "flip" and start < len(data):
        data[start] ^= 1 << draw.randrange(8)
    elif how == "cut":
        del data[start:]
    elif how == "lose":
        del data[start:end]
    elif how == "double":
        data[start:start] = data[start:end]
    elif how == "zero":
        data[start:end] = bytes(end - start)
    elif how == "random":
        data[start:end] = draw.randbytes(end - start)
    else:
        data[start:start] = draw.choice((b"\x00", b"\xff\xfe", b"{", b"[" * 10_000, b'"', b"\n"))
    return bytes(data)


def damaged_value(draw: random.Random, value):
    """A value of JSON with one change somewhere in it."""
    while isinstance(value, dict | list) and value and draw.random() < 0.9:
        keys = sorted(value) if isinstance(value, dict) else range(len(value))
        key = draw.choice(keys)
        child = value[key]
        if isinstance(child, dict | list) and child and draw.random() < 0.8:
            return _with(value, key, damaged_value(draw, child))
        if draw.random() < 0.2:
            if isinstance(value, dict):
                return {name: value[name] for name in value if name != key}
            return value[:key] + value[key + 1 :]
        return _with(value, key, draw.choice(ODD_VALUES))
    return draw.choice(ODD_VALUES)


def _with(value, key, child):
    copy = value.copy()
    copy[key] = child
    return copy


def damaged(draw: random.Random, path: pathlib.Path) -> bytes:
    """The content of a file with one damage, half of the time to a value that it holds."""
    content = path.read_bytes()
    if draw.random() < 0.5:
        return damaged_bytes(draw, content)
    if path.suffix == ".safetensors":
        (length,) = struct.unpack("<Q", content[:8])
        header = damaged_value(draw, json.loads(content[8 : 8 + length]))
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + content[8 + length :]
    if path.suffix == ".jsonl":
        lines = content.splitlines()
        place = draw.randrange(len(lines))
        lines[place] = json.dumps(damaged_value(draw, json.loads(lines[place]))).encode()
        return b"\n".join(lines) + b"\n"
    try:
        whole = json.loads(content)
    except ValueError:
        return damaged_bytes(draw, content)
    return json.dumps(damaged_value(draw, whole)).encode()


class Model:
    """A denoiser with its tokenizer."""

    def make(self, directory):
        tiny.save_model(directory, ["1", "2", "3", "4"])
        return [directory / name for name in ("config.json", "model.safetensors")] + [
            directory / name for name in ("tokenizer.json", "tokenizer_config.json")
        ]

    def load(self, directory):
        tokenizer = denoisers.load_tokenizer(directory)
        tokenizer.decode(tokenizer.encode("1"))
        denoisers.from_pretrained(directory)


class Family:
    """The config of a denoiser of another family."""

    def __init__(self, name):
        self.name = name

    def make(self, directory):
        directory.mkdir()
        return [shutil.copy(FIXTURES / self.name / "config.json", directory)]

    def load(self, directory):
        denoisers.abstract_params(read_config(directory, mask_token_id=1))


class Policy:
    """A learned policy."""

    def make(self, directory):
        shutil.copytree(FIXTURES / "policy" / "dit_confidence", directory)
        return [directory / name for name in ("policy_config.json", "model.safetensors")]

    def load(self, directory):
        policies.parse_policy(f"learned:{directory}")


class Problems:
    """A task's file of JSON Lines, or the same as Parquet."""

    def __init__(self, name, suffix):
        self.name, self.suffix = name, suffix

    def make(self, directory):
        directory.mkdir()
        file = TASKS[self.name]
        source = FIXTURES / "samples" / FOLDERS.get(self.name, self.name) / file
        path = directory / file
        shutil.copy(source, path)
        if self.suffix == ".parquet":
            import pyarrow
            from pyarrow import parquet

            rows = [json.loads(line) for line in path.read_text().splitlines()]
            path.unlink()
            path = path.with_suffix(".parquet")
            parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return [path]

    def load(self, directory):
        (path,) = directory.iterdir()
        task = tasks.create(self.name, path=path)
        split = "test" if getattr(task, "test_only", False) or "test" in path.stem else "train"
        examples = task.source(split)
        for index in range(min(len(examples), 5)):
            task.prompt(examples[index])
            # Right responses may be damaged as well; that shows where they are asked for.
            with contextlib.suppress(ValueError):
                task.target(examples[index])


class Checkpoint:
    """The files of the later of two checkpoints."""

    def make(self, directory):
        with Checkpoints(directory) as checkpoints:
            for step in (1, 2):
                checkpoints.save(step, params=self._params(step), state={"n": jnp.int32(step)})
        files = sorted((directory / "checkpoints" / "2").rglob("*"))
        return [path for path in files if path.is_file()]

    def load(self, directory):
        with Checkpoints(directory) as checkpoints:
            restored = checkpoints.restore(self._params(0), {"n": jnp.int32(0)})
        assert restored is not None
        # What is not as it was written is noticed, and the one before is taken.
        np.testing.assert_array_equal(restored.params["w"], self._params(restored.step)["w"])

    @staticmethod
    def _params(step):
        return {"w": jnp.full((4, 4), step, jnp.float32)}


SUBJECTS = {
    "model": Model(),
    "policy": Policy(),
    "checkpoint": Checkpoint(),
    **{name: Family(name) for name in ("sdar", "dream", "llada_moe", "llada2_moe")},
    **{name: Problems(name, ".jsonl") for name in TASKS},
    **{f"{name}.parquet": Problems(name, ".parquet") for name in ("gsm8k", "math", "countdown")},
}
# For the tests that always run; a checkpoint takes a quarter of a second.
FEW = {"model": 12, "policy": 12, "checkpoint": 4}


def attempt(subject, whole: pathlib.Path, directory: pathlib.Path, files, seed: int):
    """Loads a copy with one damage; what is wrong with the way in which that failed, or None."""
    draw = random.Random(seed)
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(whole, directory)
    path = directory / os.path.relpath(draw.choice(files), whole)
    path.write_bytes(damaged(draw, path))
    try:
        with limits(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            subject.load(directory)
    except (ValueError, OSError, FloatingPointError, CheckpointError) as error:
        said = str(error)
        if str(directory) not in said and path.name not in said:
            return f"{path.name}, seed {seed}: {type(error).__name__} without it: {said[:300]}"
    except BaseException as error:
        return f"{path.name}, seed {seed}: {error!r:.300}"
    return None


def fuzz(name, tmp_path, count):
    subject = SUBJECTS[name]
    files = subject.make(tmp_path / "whole")
    subject.load(tmp_path / "whole")
    found = [
        attempt(subject, tmp_path / "whole", tmp_path / "damaged", files, seed)
        for seed in range(count)
    ]
    wrong = [problem for problem in found if problem]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_few_damages(name, tmp_path):
    fuzz(name, tmp_path, FEW.get(name, 10))


@pytest.mark.slow
@pytest.mark.parametrize("name", SUBJECTS)
def test_many_damages(name, tmp_path):
    fuzz(name, tmp_path, 200 if name == "checkpoint" else 1000)
    jax.clear_caches()
