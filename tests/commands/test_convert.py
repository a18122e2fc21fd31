"""`python -m jax_unmask.convert`: there and back, and what it refuses."""

import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jax_unmask import denoisers
from jax_unmask.commands import convert
from jax_unmask.shipped import assets

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"


def run(*arguments):
    convert.main([f"--{name}={value}" for name, value in arguments])


def test_there_and_back_with_the_tokenizer(tmp_path, caplog):
    caplog.set_level("INFO", logger="jax_unmask")
    orbax, back, source = tmp_path / "orbax", tmp_path / "back", tmp_path / "source"
    shutil.copytree(assets() / "sudoku", source)
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tools.jinja").write_text("1")
    run(("source", source), ("output", orbax))
    assert f"{orbax}: Orbax, llada," in caplog.text
    run(("source", orbax), ("output", back))
    assert re.search(f"{back}: Hugging.* llada,", caplog.text)
    original, written = (
        load_file(directory / "model.safetensors") for directory in (assets() / "sudoku", back)
    )
    assert original.keys() == written.keys()
    for name, tensor in original.items():
        assert tensor.tobytes() == written[name].tobytes(), name
    for file in source.rglob("*"):
        name = file.relative_to(source)
        if file.is_file() and file.name not in ("config.json", "model.safetensors"):
            assert (orbax / name).read_bytes() == (back / name).read_bytes() == file.read_bytes()


def test_diffusion_gemma(tmp_path):
    source = FIXTURES / "diffusion_gemma"
    run(("source", source), ("output", tmp_path / "orbax"))
    run(("source", tmp_path / "orbax"), ("output", tmp_path / "back"))
    original, written = (
        load_file(directory / "model.safetensors") for directory in (source, tmp_path / "back")
    )
    assert original.keys() == written.keys()
    assert all(value.tobytes() == written[name].tobytes() for name, value in original.items())


def test_another_type_in_shards(tmp_path):
    run(
        ("source", FIXTURES / "llada_moe"),
        ("output", tmp_path / "new"),
        ("to", "hf"),
        ("param_dtype", "bfloat16"),
        ("mask_token_id", 314),
        ("max_shard_gb", 1e-4),
    )
    assert len(list((tmp_path / "new").glob("model-*.safetensors"))) > 2
    denoiser, params = denoisers.from_pretrained(tmp_path / "new")
    assert denoiser.config.mask_token_id == 314
    _, expected = denoisers.from_pretrained(
        FIXTURES / "llada_moe", mask_token_id=314, param_dtype=jnp.bfloat16
    )
    jax.tree.map(np.testing.assert_array_equal, params, expected)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no/such/model/here", "--source = 'no/such/model/here'"),
        (FIXTURES / "llada_moe", "mask_token_id is missing"),
    ],
)
def test_says_what_is_wrong(tmp_path, source, message):
    with pytest.raises(SystemExit) as stopped:
        run(("source", source), ("output", tmp_path / "new"))
    assert message in str(stopped.value)
    assert not (tmp_path / "new").exists()


def test_overwrites_nothing(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit, match=f"--output = '{tmp_path}'"):
        run(("source", "sudoku"), ("output", tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
