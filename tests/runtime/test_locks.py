import errno
import fcntl
import json
import os
import socket
import subprocess
import sys

import pytest

from jax_unmask.runtime import files, locks
from jax_unmask.runtime.locks import DirectoryLock
from jax_unmask.settings import ConfigError


@pytest.fixture
def lock(tmp_path):
    with DirectoryLock(tmp_path / "run", "run.lock") as lock:
        yield lock


def test_only_one_has_it_until_it_gives_it_back(lock, tmp_path):
    lock.check()
    assert not (tmp_path / "run").exists()  # Nothing was made.
    lock.take()
    lock.take()
    with DirectoryLock(tmp_path / "run", "run.lock") as other:
        with pytest.raises(
            ConfigError, match=rf"--workdir = .*process {os.getpid()} on {socket.gethostname()}\b"
        ):
            other.check()
        lock.close()
        other.take()
        other.check_held()


def test_names_a_process_on_another_host(lock, tmp_path):
    lock.take()
    (tmp_path / "run" / "run.lock").write_text(json.dumps({"host": "node7", "process": 12}))
    with (
        DirectoryLock(tmp_path / "run", "run.lock") as other,
        pytest.raises(ConfigError, match=r"--workdir = .*process 12 on node7 "),
    ):
        other.take()


@pytest.mark.parametrize("next_writer", ["of the directory", "of the file"])
def test_half_written_files_of_killed_processes_go_and_those_of_others_stay(
    lock, tmp_path, next_writer
):
    outcomes = tmp_path / "run" / "outcomes"
    outcomes.mkdir(parents=True)
    write = f"""
import os
from jax_unmask.runtime import files
os.fsync = lambda _: os.kill(os.getpid(), 9)
files.atomic_write({str(outcomes / "row.npz")!r}, b"half")
"""
    subprocess.run([sys.executable, "-c", write])
    (left,) = outcomes.iterdir()
    here = f".{socket.gethostname()}"
    others = [
        left.with_name(left.name.removesuffix(here) + ".node7"),
        left.with_name(f".row.npz.{'0' * 32}.{os.getpid()}{here}"),
        left.with_name(".hidden"),
    ]
    for path in others:
        path.touch()
    if next_writer == "of the directory":
        lock.take()
    else:
        files.atomic_write(outcomes / "row.npz", b"whole")
        others.append(outcomes / "row.npz")
    assert set(outcomes.iterdir()) == set(others)


def test_a_full_disk_is_an_error_about_the_lock(lock, tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(OSError, match=str(tmp_path / "run" / "run.lock")):
        lock.take()


def test_waits_for_children_of_a_process_that_was_killed(lock, tmp_path):
    # The child got the lock with the descriptor, as children of a fork do.
    lock.take()
    descriptor = lock._descriptor
    child = subprocess.Popen(["sleep", "0.3"], pass_fds=[descriptor])
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    holder = {"host": socket.gethostname(), "process": gone.pid}
    (tmp_path / "run" / "run.lock").write_text(json.dumps(holder))
    lock.close()
    with DirectoryLock(tmp_path / "run", "run.lock") as other:
        other.take()
    assert child.wait() == 0


def test_a_directory_that_is_replaced(lock, tmp_path):
    lock.check_held()
    lock.take()
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/run was deleted"):
        lock.check_held()
    with DirectoryLock(tmp_path / "run", "run.lock") as other:
        other.take()
        with pytest.raises(FileNotFoundError, match=f"{tmp_path}/run was deleted"):
            lock.check_held()


def test_a_file_system_without_locks(lock, tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    assert fcntl.flock is refuse
    lock.take()
    assert f"{tmp_path}/run/run.lock" in caplog.text
