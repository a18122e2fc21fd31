import sys
import types

import pytest

from jax_unmask import tasks
from jax_unmask.tasks import files
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


def test_a_task_is_a_class_and_a_line(tmp_path, monkeypatch):
    module = types.ModuleType("capitals")
    module.Capitals = Capitals
    monkeypatch.setitem(sys.modules, "capitals", module)
    text = "\n".join(str(row).replace("'", '"') for row in ROWS)
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text(text)
    task = tasks.create("capitals.Capitals", path=tmp_path)
    assert list(tasks.settings("capitals.Capitals")) == ["path", "difficulty"]
    for split, size in {"train": 18, "validation": 2, "test": 20}.items():
        source = task.source(split)
        assert len(source) == size
        examples = [source[k] for k in range(size)]
        assert task.check_batch(examples, [task.target(e) for e in examples]) == [1.0] * size
        assert task.check_batch(examples, ["?"] * size) == [0.0] * size


def test_parquet_files(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (tmp_path / "data").mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "train.parquet")
    part = tmp_path / "data" / "test-00000-of-00001.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), part)
    task = Capitals(tmp_path)
    assert len(task.source("train")) == 18
    assert task.source("test")[3] == ROWS[3]
    parquet.write_table(pyarrow.table({"country": ["x"]}), part)
    with pytest.raises(ValueError, match="row 0: field 'capital' is missing"):
        task.source("test")
    part.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is not a Parquet file"):
        task.source("test")
    part.rename(part.with_name("test-00000-of-00002.parquet"))
    part.write_bytes(b"nothing")
    with pytest.raises(FileNotFoundError, match=r"2 files test-\*.parquet"):
        task.source("test")


def test_a_hub_data_set_that_is_not_there(monkeypatch):
    import huggingface_hub

    def fail(*args, **kwargs):
        raise huggingface_hub.errors.LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(FileNotFoundError, match="data set 'a/b' cannot be fetched"):
        Capitals("hub:a/b").source("test")


def test_a_hub_data_set_is_read_where_it_was_put(monkeypatch, tmp_path):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    (tmp_path / "test.jsonl").write_text('{"country": "x", "capital": "y"}')
    assert len(Capitals("hub:a/b").source("test")) == 1
    assert files.local("hub:a/b") == tmp_path
