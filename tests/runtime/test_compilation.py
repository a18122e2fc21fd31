import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from jax_unmask.runtime import compilation
from jax_unmask.runtime.compilation import CompileTimes

SCRIPT = """
import json
import jax, jax.numpy as jnp
from jax_unmask.runtime.compilation import CompileTimes, enable_cache
directory = enable_cache()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
times = CompileTimes()
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((4, 4))).block_until_ready()
print(json.dumps({"directory": str(directory), "programs": times.programs,
                  "hits": times.cache_hits, "seconds": times.seconds}))
"""


def run(home: pathlib.Path, **variables: str) -> dict:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("JAX_")}
    kept.pop("XDG_CACHE_HOME", None)
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=kept | {"HOME": str(home), "JAX_PLATFORMS": "cpu"} | variables,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return json.loads(result.stdout)


def test_the_second_process_compiles_nothing(tmp_path):
    first, second = run(tmp_path), run(tmp_path)
    directory = pathlib.Path(first["directory"])
    assert directory.parent == tmp_path / ".cache" / "jax_unmask"
    assert any(directory.iterdir())
    assert first["hits"] == 0
    assert first["seconds"] > 0
    assert second["hits"] == second["programs"] == first["programs"] > 0
    # Entries that a killed process cut off are compiled again.
    for entry in directory.iterdir():
        os.truncate(entry, entry.stat().st_size // 2)
    found = run(tmp_path)
    assert found["hits"] == 0
    assert found["programs"] > 0


def test_jax_variables_choose_the_directory_or_switch_it_off(tmp_path):
    chosen = tmp_path / "chosen"
    assert run(tmp_path, JAX_COMPILATION_CACHE_DIR=str(chosen))["directory"] == str(chosen)
    assert any(chosen.iterdir())
    assert run(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false")["directory"] == "None"
    assert not (tmp_path / ".cache").exists()


def test_counts_programs_but_not_calls():
    times = CompileTimes()
    double = jax.jit(lambda x: 2 * x)
    x = jnp.ones(3)
    before = times.programs
    for _ in range(3):
        double(x).block_until_ready()
    assert times.programs == before + 1


def test_flags_of_a_chip_are_added_to_those_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_enable_async_all_gather=false --other=1")
    monkeypatch.setattr(compilation, "_DEVICES", tmp_path)
    compilation.choose_flags()
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "device").write_text("0x006f\n")
    for _ in range(2):
        compilation.choose_flags()
        found = os.environ["LIBTPU_INIT_ARGS"].split()
        assert found[:2] == ["--xla_enable_async_all_gather=false", "--other=1"]
        assert found[2:] == [
            flag for flag in compilation.TPU_FLAGS["0x006f"] if "async_all_gather" not in flag
        ]


@pytest.mark.parametrize(
    ("version", "quantized", "given", "expected"),
    [
        ((0, 12, 0), False, "--other=1", True),
        ((0, 12, 0), False, "--xla_gpu_enable_triton_gemm=true", False),
        ((0, 12, 0), True, "", False),
        ((0, 10, 2), False, "", False),
    ],
)
def test_flags_of_a_gpu(version, quantized, given, expected, tmp_path, monkeypatch):
    """XLA reads slices in place from 0.12 on; weights of a byte are better off with Triton."""
    monkeypatch.setattr(jax, "__version_info__", version)
    monkeypatch.setattr(compilation, "_DEVICES", tmp_path)
    monkeypatch.setenv("XLA_FLAGS", given)
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "")
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "vendor").write_text("0x1af4\n")
    compilation.choose_flags(quantized)
    assert os.environ["XLA_FLAGS"] == given
    (tmp_path / "one" / "vendor").write_text("0x10de\n")
    for _ in range(2):
        compilation.choose_flags(quantized)
        added = list(compilation.GPU_FLAGS) if expected else []
        assert os.environ["XLA_FLAGS"].split() == given.split() + added
    assert not os.environ["LIBTPU_INIT_ARGS"]


def test_expected_times_are_of_the_last_time_or_of_the_kind(tmp_path, caplog):
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    told = []
    try:
        names = ("rollouts of x", "rollouts of x", "rollouts of y", "training", "rollouts of x")
        for what in (f"{name} with {model}" for name, model in zip(names, "aaaab", strict=True)):
            caplog.clear()
            with caplog.at_level("INFO"), compilation.announced(what):
                pass
            told.append(caplog.text)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    words = ["the first time", "the last time", "as other rollouts"]
    words += 2 * ["the first time"]
    assert [word in text for word, text in zip(words, told, strict=True)] == 5 * [True]
