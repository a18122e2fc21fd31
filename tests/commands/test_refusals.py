"""Wrong arguments: key and value in one error, before weights are loaded or a program compiled."""

import logging
import pathlib
import runpy
import shutil

import pytest
from ml_collections import ConfigDict

from jax_unmask import denoisers, shipped
from jax_unmask.commands import bench, command_line, convert, generate, harness, serve, train
from jax_unmask.commands import eval as evaluation
from jax_unmask.recipes.policy_grpo import PolicyGrpo
from jax_unmask.settings import ConfigError

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
POSED = ("--model=sudoku", "--task=sudoku")
LONG = ("--model=word_problems", "--task=word_problems")
POLICIES = pathlib.Path(__file__).parents[1] / "fixtures" / "policy"
# Random weights, among them one vector per position: they act on no longer canvas.
UNFIT, SHORT = (f"learned:{POLICIES}/canvas_{length}" for length in (16, 8))


@pytest.fixture(autouse=True)
def weights_are_not_loaded(monkeypatch):
    def refuse(*arguments, **settings):
        raise AssertionError("weights were about to be loaded")

    monkeypatch.setattr(denoisers, "from_pretrained", refuse)


def refused(command, *arguments) -> str:
    with pytest.raises(SystemExit) as stopped:
        command.main(list(arguments))
    text = stopped.value.code
    assert isinstance(text, str) and text.startswith("error: ") and "\n" not in text
    return text


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((*POSED, "--policy=threshold:threshold=x"), "--policy = 'threshold:threshold=x'"),
        ((*POSED, "--policy=learned:nosuch"), "--policy = 'learned:nosuch'"),
        ((*LONG, f"--policy={UNFIT}"), f"--policy = '{UNFIT}'"),
        ((*LONG, "--block_length=32", "--policy=learned:universal,nfe=12"), "--policy=universal"),
        ((*POSED, "--gen_length=0"), "--gen_length = 0"),
        ((*POSED, "--gen_length=1000"), "--gen_length = 1000"),
        ((*POSED, "--cache=duel"), "--cache = 'duel'"),
        ((*POSED, "--cache=block"), "--cache = 'block'"),
        (("--model=sudoku", "--task=sudok"), "--task = 'sudok'"),
        (("--model=sudoku", "--task=countdown"), "--task = 'countdown'"),
        (("--model=sudoku", "--task=gsm8k", "--data=nosuch"), "--data = 'nosuch'"),
        (("--model=sudoku", "--prompt=hello"), "--prompt = 'hello'"),
        (("--model=sudoku", f"--prompt={'1' * 40}"), "--prompt = '1111"),
        (("--model=sudoku", "--messages=nosuch"), "--messages = 'nosuch'"),
    ],
)
def test_generate(arguments, named):
    assert named in refused(generate, *arguments)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--model=sudoku", "--policy=treshold"), "--policy = 'treshold'"),
        (("--model=word_problems", f"--policy={UNFIT}"), f"--policy = '{UNFIT}'"),
        (("--model=sudoku", "--cache=block"), "--cache = 'block'"),
        (("--model=sudoku", "--task=countdown"), "--task = 'countdown'"),
        (("--model=sudoku", "--task=gsm8k", "--data=nosuch"), "--data = 'nosuch'"),
        (("--model=sudoku", "--prompt_length=100"), "--prompt_length"),
        (("--breakdown", "--config=nosuch"), "--config = 'nosuch'"),
    ],
)
def test_bench(arguments, named):
    assert named in refused(bench, "--batch_sizes=1", *arguments)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--policy=treshold",), "--policy = 'treshold'"),
        (("--gen_length=0",), "--gen_length = 0"),
        (("--mc_draws=100",), "--mc_batch_size = 32"),
        (("--seed=-1",), "--seed = -1"),
    ],
)
def test_harness(arguments, named):
    assert named in refused(harness, "--model=sudoku", "--tasks=x", *arguments)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--model=word_problems", f"--policy={UNFIT}"), f"--policy = '{UNFIT}'"),
        (("--model=sudoku", "--lengths=16,1000"), "--lengths = '16,1000'"),
        (("--model=sudoku", "--temperatures=0,-1"), "--temperatures = '0,-1'"),
        (("--model=sudoku", "--drain_seconds=-3"), "--drain_seconds = -3"),
    ],
)
def test_serve(arguments, named):
    pytest.importorskip("uvicorn")
    assert named in refused(serve, "--port=0", *arguments)


@pytest.mark.parametrize("damage", ["gone", "cut", "other", "tokenizer"])
def test_files_of_a_model(tiny_model_dir, tmp_path, damage):
    model = shutil.copytree(tiny_model_dir, tmp_path / "model")
    weights = model / "model.safetensors"
    if damage == "gone":
        weights.unlink()
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-8])
    elif damage == "other":
        config = model / "config.json"
        config.write_text(config.read_text().replace('"n_layers": 1', '"n_layers": 2'))
    else:
        (model / "tokenizer.json").unlink()
    lengths = ("--gen_length=16", "--block_length=16")
    assert f"--model = '{model}'" in refused(generate, f"--model={model}", "--prompt=1=", *lengths)
    if damage != "tokenizer":  # Random prompts need none.
        assert f"--model = '{model}'" in refused(
            bench, f"--model={model}", "--batch_sizes=1", *lengths
        )


def test_convert_names_the_source_and_the_output(tmp_path):
    (tmp_path / "file").write_text("x")
    named = f"--output = '{tmp_path / 'file'}'"
    assert named in refused(convert, "--source=sudoku", f"--output={tmp_path / 'file'}")
    named = f"--source = '{tmp_path / 'file'}'"
    assert named in refused(convert, f"--source={tmp_path / 'file'}", f"--output={tmp_path / 'x'}")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"task__name": "countdown"}, "config.task.name = 'countdown'"),
        ({"eval__policies": (f"{UNFIT},alpha=1",)}, "config.eval.policies"),
        ({"eval__policies": (SHORT,)}, f"config.eval.policies = '{SHORT}'"),
        ({"eval__caches": ("block",)}, "config.eval.caches = 'block'"),
    ],
)
def test_eval(tiny_config, tmp_path, changes, named):
    settings = {"eval__num_problems": 2, "eval__block_lengths": (16,), "eval__shipped": ()}
    config = tiny_config(**settings | {"eval__policies": ("threshold",)} | changes)
    with pytest.raises(ConfigError) as error:
        evaluation.evaluate(config, tmp_path / "run")
    assert named in str(error.value)


def test_a_batch_that_is_refused_is_no_compilation(tiny_config, tmp_path, monkeypatch, caplog):
    class Batches:
        def __next__(self):
            raise ValueError("the batch is refused")

    monkeypatch.undo()  # This one loads its weights.
    monkeypatch.setattr(PolicyGrpo, "data", lambda self: Batches())
    with caplog.at_level(logging.INFO), pytest.raises(ValueError, match="refused"):
        train.train(tiny_config(), tmp_path / "run")
    assert "Compiling" not in caplog.text


def test_eval_names_the_setting_of_a_policy_that_cannot_act(tmp_path, monkeypatch):
    config = runpy.run_path(str(CONFIGS / "tiny_policy.py"))["get_config"]("sudoku")
    config.rollout.update(gen_length=32, block_length=32)
    config.eval.update(policies=(), block_lengths=(32,), shipped=("canvas_*",))
    (tmp_path / "assets" / "policies").mkdir(parents=True)
    for name, path in (
        ("sudoku", shipped.assets() / "sudoku"),
        ("policies/canvas_16", POLICIES / "canvas_16"),
    ):
        (tmp_path / "assets" / name).symlink_to(path)
    monkeypatch.setattr(shipped, "assets", lambda: tmp_path / "assets")
    with pytest.raises(ConfigError) as error:
        evaluation.evaluate(config, tmp_path / "run")
    assert "config.eval.shipped" in str(error.value)


@pytest.mark.parametrize("settings", ["environments", "stages"])
def test_quantised_weights_of_a_line_are_known(settings):
    for line, expected in (("model.quantization=int8", True), ("model.quantization=None", False)):
        config = ConfigDict({"model": {"quantization": None}, settings: ("seed=1", line)})
        assert command_line.is_quantized(config) is expected
