"""A Hugging Face cache on the local disk, as a download leaves it."""

import pathlib

COMMIT = "0" * 40


def folder(cache: pathlib.Path, name: str, kind: str = "datasets") -> pathlib.Path:
    """The folder of a data set (or of "models") in a cache, into which its files are to be put."""
    top = cache / f"{kind}--{name.replace('/', '--')}"
    (top / "refs").mkdir(parents=True)
    (top / "refs" / "main").write_text(COMMIT)
    made = top / "snapshots" / COMMIT
    made.mkdir(parents=True)
    return made


def use(monkeypatch, cache: pathlib.Path) -> None:
    """Makes the hub's client read that cache and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
