import json
import pathlib

import jax
import pytest

from jax_unmask.runtime import agreement
from jax_unmask.settings import ConfigError


def of(process: dict) -> dict:
    return agreement.of_run(process, pathlib.Path("runs/one"))


def test_processes_that_are_not_alike():
    first = of({"optimizer.lr": 0.1, "seed": 0, "checkpoint.every": 5})
    other = first | {"optimizer.lr": 0.2, "--workdir": "runs/two"}
    text = str(agreement.difference([first, first, other]))
    assert text.startswith("--workdir = 'runs/one': ")
    assert "optimizer.lr (0.1 in process 0, 0.2 in process 2)" in text
    assert "seed" not in text
    del other["--workdir"]
    assert "'absent' in process 1" in str(agreement.difference([first, other]))


def test_compares_all_of_them_and_errs_alike(monkeypatch):
    mine = of({"optimizer.lr": 0.1})
    processes = [mine, mine]
    monkeypatch.setattr(jax, "process_count", lambda: 2)

    def gather(value: bytes) -> list[bytes]:
        texts = [json.dumps(each, default=repr).encode() for each in processes]
        if len(value) == 32:
            return [agreement.hashlib.sha256(text).digest() for text in texts]
        if len(value) == 8:
            return [len(text).to_bytes(8, "big") for text in texts]
        return [text.ljust(len(value)) for text in texts]

    monkeypatch.setattr(agreement, "_gathered", gather)
    agreement.require_same(mine)
    processes[1] = mine | {"checkpoint.every": 7}
    with pytest.raises(ConfigError, match="'absent' in process 0, 7 in process 1"):
        agreement.require_same(mine)
