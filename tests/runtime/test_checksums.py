"""Sums of the files of a checkpoint, written and compared by several processes."""

import pytest

from jax_unmask.runtime import checksums

WRITTEN = {
    0: ("params/manifest.ocdbt", "params/ocdbt.process_0/d/a", "data/metadata"),
    1: ("params/ocdbt.process_1/d/b", "state/ocdbt.process_1/d/c"),
    2: ("params/ocdbt.process_2/d/e",),
}


@pytest.fixture
def directory(tmp_path):
    """A checkpoint that three processes wrote."""
    for names in WRITTEN.values():
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(name)
    for process in (2, 1, 0):
        checksums.write(tmp_path, process)
    return tmp_path


@pytest.fixture
def read(monkeypatch):
    """The files that were read, by name below the checkpoint."""
    found = []
    sums = checksums._sums

    def note(paths):
        found.extend(paths)
        return sums(paths)

    monkeypatch.setattr(checksums, "_sums", note)
    return found


@pytest.mark.parametrize("process", WRITTEN)
def test_a_process_sums_what_it_wrote(directory, read, process):
    checksums.write(directory, process)
    names = {path.relative_to(directory).as_posix() for path in read}
    others = {"checksums.1.json", "checksums.2.json"} if process == 0 else set()
    assert names == {*WRITTEN[process], *others}


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_together_they_read_every_file_once(directory, read, processes):
    """Also where a run goes on with more or fewer processes than wrote it."""
    items = ("params", "state", "data")
    for process in range(processes):
        assert not checksums.problem(directory, items=items, process=process, processes=processes)
    names = sorted(path.relative_to(directory).as_posix() for path in read)
    written = [name for names in WRITTEN.values() for name in names]
    assert names == sorted([*written, "checksums.1.json", "checksums.2.json"])


def test_one_of_them_finds_what_has_changed(directory):
    (directory / WRITTEN[1][0]).write_text("changed".ljust(len(WRITTEN[1][0])))
    found = [
        checksums.problem(directory, items=("params",), process=process, processes=2)
        for process in range(2)
    ]
    assert found.count(None) == 1
    assert WRITTEN[1][0] in "".join(filter(None, found))
    assert checksums.problem(directory, items=("state", "data")) is None
