"""The published experiment from a wheel: a new environment and home, an empty directory.

Model and data lie under their published names in the cache of the hub: the real problems of GSM8K
in the published files, and a small LLaDA checkpoint with a real tokenizer.
"""

import gzip
import json
import os
import shutil
import subprocess
import time

import pytest

import hub_cache
import tiny

pytestmark = pytest.mark.slow
STEPS = 4
SMALL = [
    "--config.rollout.gen_length=16",
    "--config.rollout.block_length=8",
    "--config.rollout.prompts_per_step=2",
    "--config.rollout.group_size=2",
    "--config.optimizer.warmup_steps=1",
    # A random denoiser never answers right, but its steps can be charged for.
    "--config.reward.kind=additive",
    "--config.policy.network.initial_bias=0.0",
]
TRAIN = [
    *("-m", "jax_unmask.train", "--config=configs/gsm8k.py", *SMALL),
    *(f"--config.train.steps={STEPS}", "--config.checkpoint.every=1"),
    "--config.eval.after_training=False",
]
EVALUATE = [
    *("-m", "jax_unmask.eval", "--config=configs/gsm8k.py", *SMALL, "--config.eval.num_problems=3"),
    *(
        "--config.eval.policies=('top_confidence:tokens_per_step=8',)",
        "--config.eval.block_lengths=(8,)",
    ),
    *("--checkpoint=runs/gsm8k/checkpoints/3", "--workdir=measured"),
]


@pytest.fixture
def home(tmp_path, shared_data_dir):
    """A home directory with nothing but a filled cache of the hub."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    cache = tmp_path / "home" / ".cache" / "huggingface" / "hub"
    model = hub_cache.folder(cache, "GSAI-ML/LLaDA-8B-Instruct", "models")
    tokenizer = shared_data_dir / "tokenizer_sdar_qwen3"
    packed = (tokenizer / "tokenizer.json.gz").read_bytes()
    (model / "tokenizer.json").write_bytes(gzip.decompress(packed))
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(tokenizer / name, model / name)
    tiny.save_weights(model, 151_936, mask=151_669, eos=151_643, max_length=512)
    data = hub_cache.folder(cache, "openai/gsm8k") / "main"
    data.mkdir()
    for split in ("train", "test"):
        with gzip.open(shared_data_dir / "gsm8k" / f"{split}.jsonl.gz", "rt") as file:
            rows = [json.loads(line) for line in file]
        table = pyarrow.Table.from_pylist(rows)
        parquet.write_table(table, data / f"{split}-00000-of-00001.parquet")
    return tmp_path / "home"


def test_the_published_experiment(wheel, home, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    kept = ("JAX_COMPILATION_CACHE_DIR", "LANG", "PATH")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    environment |= {"HOME": str(home), "HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu"}
    where = {"cwd": empty, "env": environment}
    metrics = empty / "runs" / "gsm8k" / "metrics.jsonl"
    with (
        open(tmp_path / "log", "w") as log,
        subprocess.Popen([wheel, *TRAIN], stdout=log, stderr=log, **where) as training,
    ):
        deadline = time.monotonic() + 400
        while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
            assert training.poll() is None and time.monotonic() < deadline, log_of(tmp_path)
            time.sleep(0.05)
        training.kill()
    again = run([wheel, *TRAIN], where)
    assert "Continuing runs/gsm8k at step" in again
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    run([wheel, *EVALUATE], where)
    results = (empty / "measured" / "results.jsonl").read_text().splitlines()
    methods = {json.loads(line)["method"] for line in results}
    assert len(methods) == 2 and all(json.loads(line)["n"] == 3 for line in results)


def run(command, where):
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, **where)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stderr


def log_of(directory):
    return (directory / "log").read_text()[-4000:]
