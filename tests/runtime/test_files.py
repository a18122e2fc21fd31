import errno
import os
import pathlib
import socket

import jax
import pytest

import tiny
from jax_unmask import policies
from jax_unmask.runtime import config, files, locks


def test_writes_text_and_bytes_and_makes_directories(tmp_path):
    files.atomic_write(tmp_path / "a" / "b.txt", "größe\n")
    files.atomic_write(tmp_path / "a" / "c.bin", b"\x00\xff")
    assert (tmp_path / "a" / "b.txt").read_text(encoding="utf-8") == "größe\n"
    assert (tmp_path / "a" / "c.bin").read_bytes() == b"\x00\xff"


def test_replaces_and_leaves_nothing_beside(tmp_path):
    for content in ("one", "two"):
        files.atomic_write(tmp_path / "file", content)
    assert (tmp_path / "file").read_text() == "two"
    assert os.listdir(tmp_path) == ["file"]


def test_a_store_is_no_directory_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="gs://bucket/page"):
        files.atomic_write("gs://bucket/page.html", "")
    with pytest.raises(ValueError, match="gs://bucket/it"), files.replacing("gs://bucket/it"):
        pass
    assert not os.listdir(tmp_path)


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    files.atomic_write(tmp_path / "file", "old")

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        files.atomic_write(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_no_pipe_or_directory_is_waited_for(tmp_path):
    path = tmp_path / config.RECORD
    uses = [
        lambda: files.JsonLog(path, "step"),
        lambda: files.read_json_rows(path, "step"),
        lambda: config.check_workdir(tmp_path, {}),
        locks.DirectoryLock(tmp_path, path.name).take,
    ]
    for make in (os.mkfifo, os.mkdir):
        make(path)
        for use in uses:
            with pytest.raises(FileExistsError, match=f": '{path}'"):
                use()
        path.rmdir() if path.is_dir() else path.unlink()


def test_files_are_written_by_what_names_them_and_leaves_no_halves():
    package = pathlib.Path(files.__file__).parents[1]
    sources = [path for path in package.rglob("*.py") if "sandbox" not in path.parts]
    assert len(sources) > 100
    writers = (".write_text(", ".write_bytes(")
    assert not [path for path in sources if any(name in path.read_text() for name in writers)]


def test_a_number_that_no_process_has():
    host = socket.gethostname()
    assert files.has_ended(host, 10**30)
    assert not files.has_ended(host, os.getpid())
    assert not files.has_ended("elsewhere", 10**30)


def test_a_name_that_is_not_utf_8():
    with pytest.raises(ValueError, match=r"runs/.udcff.: .*UTF-8"):
        files.local_path(os.fsdecode(b"runs/\xff"))


def test_a_full_disk_is_an_error_about_a_file(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=f"on device: '{tmp_path}/file'"):
        files.atomic_write(tmp_path / "file", "new")
    with (
        pytest.raises(OSError, match=f"on device: '{tmp_path}/weights'"),
        files.replacing(tmp_path / "weights") as partial,
    ):
        partial.write_text("half")
        raise RuntimeError("IoError: No space left on device (os error 28)")
    assert not list(tmp_path.iterdir())


def test_whoever_may_read_new_files_may_read_exports(tmp_path):
    """A server that runs as another user reads a policy that was trained here."""
    policy = policies.LearnedPolicy(network=policies.NetworkConfig(hidden_dim=8, num_heads=1))
    (tmp_path / ".model.safetensors.partial").touch(0o600)  # Of a writer that was killed.
    policies.save_policy(tmp_path, policy, policy.init_params(jax.random.key(0)))
    (tmp_path / "model").mkdir()
    tiny.save_byte_model(tmp_path / "model")
    (tmp_path / "new").touch()
    expected = (tmp_path / "new").stat().st_mode
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.stat().st_mode for path in written} == {expected}
    assert sum(path.suffix == ".safetensors" for path in written) == 2


def test_rows_are_not_written_to_a_deleted_file(tmp_path):
    log = files.JsonLog(tmp_path / "rows.jsonl", "key")
    log.append({"key": 1})
    log.sync()
    (tmp_path / "rows.jsonl").unlink()
    log.append({"key": 2})
    with pytest.raises(FileNotFoundError, match=r"deleted .*'.*/rows\.jsonl'"):
        log.sync()
