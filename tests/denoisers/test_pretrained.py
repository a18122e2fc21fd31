"""Loading and saving: exact round trips, and one clear error for each thing that can be wrong."""

import json
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import same
from safetensors.numpy import load_file, save_file

from jax_unmask import denoisers
from jax_unmask.denoisers import hub

FIXTURE = pathlib.Path(__file__).parents[1] / "fixtures" / "llada"
WTE = "model.transformer.wte.weight"
UP = "model.transformer.blocks.1.up_proj.weight"


@pytest.fixture(scope="module")
def pretrained():
    return denoisers.from_pretrained(FIXTURE)


@pytest.fixture
def copy(tmp_path):
    """A copy of the fixture that a test may break."""
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(FIXTURE / name, tmp_path / name)
    return tmp_path


def edit_config(directory: pathlib.Path, **changes) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(directory: pathlib.Path, change) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


class TestRoundTrips:
    def test_sharded(self, pretrained, tmp_path):
        """That they load again: see `test_families`."""
        denoiser, params = pretrained
        denoisers.save_pretrained(tmp_path, denoiser, params, max_shard_bytes=150_000)
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        shards = set(index["weight_map"].values())
        assert len(shards) > 2
        assert all((tmp_path / shard).stat().st_size < 160_000 for shard in shards)
        original = load_file(FIXTURE / "model.safetensors")
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in original.values())
        assert index["weight_map"].keys() == original.keys()

        # Saving again replaces them.
        denoisers.save_pretrained(tmp_path, denoiser, params)
        names = {path.name for path in tmp_path.iterdir()}
        assert names == {"config.json", "model.safetensors"}

    def test_orbax(self, pretrained, tmp_path):
        denoiser, params = pretrained
        denoisers.save_orbax(tmp_path, denoiser, params)
        again, loaded = denoisers.from_pretrained(tmp_path)
        assert again == denoiser
        same.trees(loaded, params)
        with pytest.raises(FileExistsError):
            denoisers.save_orbax(tmp_path, denoiser, params)
        # Beside safetensors, nobody knows which is out of date; and another model's are refused.
        edit_config(tmp_path, weight_tying=True, mlp_hidden_size=80)
        with pytest.raises(ValueError, match="unexpected head; layers/down/kernel has shape"):
            denoisers.from_pretrained(tmp_path)
        denoisers.save_pretrained(tmp_path, denoiser, params)
        with pytest.raises(ValueError, match=f"{tmp_path} .*safetensors.*params/"):
            denoisers.from_pretrained(tmp_path)

    def test_bfloat16(self, pretrained, tmp_path):
        denoiser, params = denoisers.from_pretrained(FIXTURE, param_dtype="bfloat16")
        assert denoiser.config.dtype == denoiser.config.param_dtype == jnp.bfloat16
        expected = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), pretrained[1])
        same.trees(params, expected)
        for save in (denoisers.save_pretrained, denoisers.save_orbax):
            save(tmp_path / save.__name__, denoiser, params)
            again, loaded = denoisers.from_pretrained(tmp_path / save.__name__)
            assert again == denoiser
            same.trees(loaded, params)
            wide, loaded = denoisers.from_pretrained(
                tmp_path / save.__name__, param_dtype=jnp.float32, dtype=jnp.bfloat16
            )
            assert (wide.config.param_dtype, wide.config.dtype) == (jnp.float32, jnp.bfloat16)
            same.trees(loaded, jax.tree.map(lambda leaf: leaf.astype("f4"), params))

    def test_mixed_types_load_as_the_widest(self, copy, pretrained):
        def narrow(tensors):
            tensors[WTE] = tensors[WTE].astype(jnp.bfloat16)

        edit_tensors(copy, narrow)
        denoiser, params = denoisers.from_pretrained(copy)
        assert denoiser.config.param_dtype == jnp.float32
        np.testing.assert_array_equal(params["head"], pretrained[1]["head"])


def drop(name):
    return lambda directory: (directory / name).unlink()


def write(name, content):
    return lambda directory: (directory / name).write_bytes(content)


def cut(keep):
    """Keeps the first bytes of the weights."""

    def change(directory):
        path = directory / "model.safetensors"
        path.write_bytes(path.read_bytes()[:keep])

    return change


def config(**changes):
    return lambda directory: edit_config(directory, **changes)


def tensor(change):
    def edit(directory):
        edit_tensors(directory, lambda tensors: tensors.update({UP: change(tensors[UP])}))

    return edit


# What is broken, the error, and what it has to name.
BROKEN = {
    "no config": (drop("config.json"), FileNotFoundError, "config.json"),
    "no JSON": (write("config.json", b"{"), ValueError, "config.json"),
    "a list": (write("config.json", b"[1]"), ValueError, "config.json"),
    "no text": (write("config.json", b"\xff"), ValueError, "config.json"),
    "no family": (config(model_type="gpt2"), ValueError, "model_type='gpt2'"),
    "no mask token": (config(mask_token_id=None), ValueError, "mask_token_id is missing"),
    "no weights": (drop("model.safetensors"), FileNotFoundError, "holds no weights"),
    "cut in the header": (cut(4), ValueError, "model.safetensors"),
    "cut in a tensor": (cut(300_000), ValueError, "model.safetensors"),
    "empty": (cut(0), ValueError, "model.safetensors"),
    "garbled": (write("model.safetensors", b"\xff" * 1000), ValueError, "model.safetensors"),
    "float64": (tensor(lambda x: x.astype(np.float64)), ValueError, f"{UP} has type F64"),
    "integers": (tensor(lambda x: x.astype(np.int8)), ValueError, f"{UP} has type I8"),
    "transposed": (tensor(lambda x: x.T.copy()), ValueError, r"\(64, 160\) instead of \(160, 64\)"),
    "all in one error": (
        config(n_layers=3),
        ValueError,
        "missing model.transformer.blocks.2.attn_norm.weight.*; and 1 more$",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_directories(copy, name):
    change, error, message = BROKEN[name]
    change(copy)
    with pytest.raises(error, match=message):
        denoisers.from_pretrained(copy)


def test_no_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        denoisers.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(NotADirectoryError, match=r"config\.json"):
        denoisers.from_pretrained(FIXTURE / "config.json")


class TestHubNames:
    @pytest.fixture
    def download(self, monkeypatch):
        import huggingface_hub

        calls = []

        def install(result):
            def snapshot_download(name, allow_patterns):
                calls.append((name, allow_patterns))
                if isinstance(result, Exception):
                    raise result
                return str(result)

            monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
            return calls

        return install

    def test_downloads_what_is_needed(self, download):
        calls = download(FIXTURE)
        denoiser, _ = denoisers.from_pretrained("some-owner/some-model")
        assert denoiser.config.vocab_size == 320
        ((name, patterns),) = calls
        assert name == "some-owner/some-model"
        assert {"*.json", "*.jinja", "merges.txt", "*.safetensors"} <= set(patterns)

    def test_offline(self, download):
        from huggingface_hub import errors

        download(errors.LocalEntryNotFoundError("no connection"))
        with pytest.raises(
            FileNotFoundError, match=r"some-owner/some-model .*hf download some-owner/some-model"
        ):
            denoisers.from_pretrained("some-owner/some-model")


class TestWrongWeights:
    @pytest.mark.parametrize("damaged", ["_METADATA", "largest"])
    def test_damaged_orbax(self, pretrained, tmp_path, damaged):
        denoisers.save_orbax(tmp_path, *pretrained)
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        path = max(files, key=lambda path: path.stat().st_size)
        if damaged != "largest":
            path = next(path for path in files if path.name == damaged)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(ValueError, match=f"{tmp_path} is not .*copy it"):
            denoisers.from_pretrained(tmp_path)

    def test_missing_shard(self, pretrained, tmp_path):
        denoisers.save_pretrained(tmp_path, *pretrained, max_shard_bytes=150_000)
        next(tmp_path.glob("model-00002-*")).unlink()
        with pytest.raises(
            FileNotFoundError, match=r"model-00002.*model\.safetensors\.index\.json"
        ):
            denoisers.from_pretrained(tmp_path)

    def test_shards_that_would_be_downloaded_are_not_missing(
        self, pretrained, tmp_path, monkeypatch
    ):
        denoisers.save_pretrained(tmp_path, *pretrained, max_shard_bytes=150_000)
        next(tmp_path.glob("model-*.safetensors")).unlink()
        with pytest.raises(FileNotFoundError, match="index"):
            denoisers.check_weights(tmp_path)
        # A hub's index is there before its shards: it is small.
        monkeypatch.setattr(hub, "local_directory", lambda *_, **__: tmp_path)
        denoisers.check_weights("owner/sharded")

    def test_index_that_lies(self, pretrained, tmp_path):
        denoisers.save_pretrained(tmp_path, *pretrained, max_shard_bytes=150_000)
        path = tmp_path / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        del index["weight_map"][UP]
        path.write_text(json.dumps(index))
        with pytest.raises(ValueError, match=f"disagree about 1 tensors, e.g. {UP}"):
            denoisers.from_pretrained(tmp_path)

    def test_saving_parameters_of_another_model(self, pretrained, tmp_path):
        denoiser, params = pretrained
        params = {name: value for name, value in params.items() if name != "head"}
        for save in (denoisers.save_pretrained, denoisers.save_orbax):
            with pytest.raises(ValueError, match=r"params: .*missing head"):
                save(tmp_path / "model", denoiser, params)
        assert not (tmp_path / "model").exists()


def test_import_is_light():
    code = (
        "import sys, jax_unmask.denoisers;"
        "heavy = {'transformers', 'orbax', 'huggingface_hub', 'tensorflow_datasets'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
