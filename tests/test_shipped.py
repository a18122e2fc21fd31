"""The files that ship with the package fit together."""

import pytest

from jax_unmask import tasks
from jax_unmask.denoisers.pretrained import from_pretrained, read_config
from jax_unmask.environment.bundle import load_model
from jax_unmask.shipped import assets, resolve_model, shipped_lengths, shipped_models


def test_models_are_named_after_their_tasks():
    ours = {"sudoku", "arithmetic", "countdown", "word_problems"}
    assert ours <= set(shipped_models()) <= set(tasks.names())
    assert shipped_lengths("arithmetic") == (17, 32, 8)


@pytest.mark.parametrize("name", shipped_models())
def test_the_model_holds_the_lengths_that_it_is_for(name):
    lengths = shipped_lengths(name)
    assert lengths.prompt_length + lengths.gen_length <= read_config(assets() / name).max_length
    assert lengths.gen_length % lengths.block_length == 0


def test_a_model_by_its_directory_says_what_it_takes_too():
    _, _, tokenizer = load_model(str(assets() / "sudoku"))
    with pytest.raises(ValueError, match=rf"'9': .*{tasks.example_prompt('sudoku')}"):
        tokenizer.encode_prompt("9")
    assert tasks.example_prompt(str(assets() / "policies")) is None


def test_models_are_known_by_name_everywhere_and_other_names_are_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    denoiser, _ = from_pretrained("countdown")
    assert denoiser.config.family == "llada"
    assert resolve_model("./sudoku") == "./sudoku"
    with pytest.raises(FileNotFoundError, match=r"sudoko .*\(arithmetic, countdown"):
        from_pretrained("sudoko")
    with pytest.raises(ValueError, match=r"'\./sudoku' .*arithmetic, countdown"):
        shipped_lengths("./sudoku")
