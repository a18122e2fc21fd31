"""`configs/gsm8k.py` from end to end: real prompts and answers, a denoiser made on the spot.

The denoiser has random weights and the size of a thimble, but LLaDA's format; length and batch are
reduced as on the command line. The rest is what LLaDA-8B goes through.
"""

import gzip
import json
import pathlib
import runpy
import shutil

import numpy as np
import pytest

import hub_cache
import tiny
from jax_unmask import denoisers
from jax_unmask.commands import train
from jax_unmask.tasks import gsm8k

pytestmark = pytest.mark.thorough

ROOT = pathlib.Path(__file__).parents[2]
STEPS, SAVED = 4, 2


@pytest.fixture
def config():
    """`configs/gsm8k.py` with the settings that one gives for a machine without an accelerator."""
    made = runpy.run_path(str(ROOT / "configs" / "gsm8k.py"))["get_config"]()
    made.rollout.update(gen_length=16, block_length=8, prompts_per_step=2, group_size=2)
    made.train.steps, made.checkpoint.every, made.optimizer.warmup_steps = STEPS, SAVED, 2
    made.learner.chunk_size = 64
    made.log.tensorboard = False
    # Random weights never answer right; the charge for steps gives the update something to do, if
    # not every row takes all of its steps.
    made.policy.network.initial_bias = 0.0
    made.reward.kind = "additive"
    return made


@pytest.fixture
def scored(monkeypatch):
    """(example, response, score) of every rollout, in order."""
    rows, check_batch = [], gsm8k.Gsm8k.check_batch

    def record(task, examples, responses):
        scores = check_batch(task, examples, responses)
        rows.extend(zip(examples, responses, scores, strict=True))
        return scores

    monkeypatch.setattr(gsm8k.Gsm8k, "check_batch", record)
    return rows


def trains(config, workdir, rows):
    train.train(config, workdir)
    metrics = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    batch = config.rollout.prompts_per_step * config.rollout.group_size
    assert len(rows) == config.train.steps * batch
    for index, line in enumerate(metrics):
        scores = [score for _, _, score in rows[index * batch : (index + 1) * batch]]
        assert line["accuracy"] == np.mean(scores)
        assert line["reward"] == pytest.approx(np.mean(scores) - line["nfe"] / 16, abs=1e-6)
        assert 1 <= line["nfe"] <= 16
    assert any(line["pairs"] > 0 and line["grad_norm"] > 0 for line in metrics)
    # Every response is a text that the parser has read; a right one would have counted.
    example = rows[0][0]
    right = f"<answer>{gsm8k.gold(example):g}</answer>"
    assert gsm8k.Gsm8k("unused").check_batch([example], [right]) == [1.0]
    assert any(response.strip() for _, response, _ in rows)


def test_with_its_defaults_from_a_filled_cache(
    config, byte_model, fixtures_dir, tmp_path, monkeypatch, scored
):
    """Model and data by their names on the hub; TensorFlow Datasets prepares the data."""
    pytest.importorskip("tensorflow_datasets")
    cache = tmp_path / "cache"
    hub_cache.use(monkeypatch, cache)
    shutil.copytree(
        byte_model, hub_cache.folder(cache, config.model.path, "models"), dirs_exist_ok=True
    )
    data = hub_cache.folder(cache, "openai/gsm8k") / "main"
    shutil.copytree(fixtures_dir / "samples" / "gsm8k", data)
    config.task.tfds_data_dir = str(tmp_path / "tfds")  # Not in the home of who runs the tests.
    trains(config, tmp_path / "run", scored)
    saved = {int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert saved == {SAVED, STEPS}
    assert list((tmp_path / "tfds").glob("gsm8k/*/*.array_record*"))


def test_on_the_real_problems_with_a_real_tokenizer(config, shared_data_dir, tmp_path, scored):
    source = shared_data_dir / "tokenizer_sdar_qwen3"
    model = tmp_path / "model"
    model.mkdir()
    (model / "tokenizer.json").write_bytes(
        gzip.decompress((source / "tokenizer.json.gz").read_bytes())
    )
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(source / name, model / name)
    tiny.save_weights(model, 151_936, mask=151_669, eos=151_643)
    config.model.path = str(model)
    config.task.path = str(shared_data_dir / "gsm8k")
    trains(config, tmp_path / "run", scored)
    assert len({example["question"] for example, _, _ in scored}) == STEPS * 2
    tokenizer = denoisers.load_tokenizer(model)
    prompt = tokenizer.encode_prompt(gsm8k.Gsm8k("unused").prompt(scored[0][0]))
    text = tokenizer.decode(prompt, skip_special_tokens=False, cut_at_eos=False)
    assert text.startswith("<|im_start|>user\n")
    assert scored[0][0]["question"] in text
    assert len(prompt) < 300
