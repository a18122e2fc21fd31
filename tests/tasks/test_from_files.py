"""Tasks over files: a class of one's own, and the layouts in which data sets are published."""

import sys
import types

import pytest

import hub_cache
from jax_unmask import tasks
from jax_unmask.tasks.from_files import FileTask
from published_layouts import PUBLISHED, write


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


def every(source):
    return [source[k] for k in range(len(source))]


def test_a_task_is_a_class_and_a_line(tmp_path, monkeypatch):
    module = types.ModuleType("capitals")
    module.Capitals = Capitals
    monkeypatch.setitem(sys.modules, "capitals", module)
    for name in ("train", "test"):
        write(tmp_path / f"{name}.jsonl", ROWS)
    task = tasks.create("capitals.Capitals", path=tmp_path, hold_out=15)
    settings = ["path", "difficulty", "test_path", "hold_out"]
    assert list(tasks.settings("capitals.Capitals")) == settings
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
    with pytest.raises(ValueError, match=r"train.parquet is damaged"):
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


def test_files_alone_as_tracerl_downloads_them(tmp_path):
    for split, name in (("train", "PrimeIntellect"), ("test", "LiveCodeBench")):
        rows = PUBLISHED["primeintellect", f"Gen-Verse/{name}"][0][f"{split}/{name}.json"]
        task = tasks.create("primeintellect", path=write(tmp_path / f"{name}.json", rows))
        assert len(task.source(split)) == 2
    with pytest.raises(ValueError, match=r"PrimeIntellect.json' is .* no split 'test'"):
        tasks.create("primeintellect", path=tmp_path / "PrimeIntellect.json").source("test")


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
