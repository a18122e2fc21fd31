"""Wrong input to `python -m jax_unmask.train`: one line that says what and how to mend it.

Nearly all cases call the command's function in this process, because each start costs seconds.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import types

import jax
import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

import tiny
from jax_unmask import policies
from jax_unmask.commands import command_line, train
from jax_unmask.denoisers.sharding import check_mesh
from jax_unmask.recipes import policy_grpo, rollouts, sft, tracerl
from jax_unmask.recipes.policy_grpo import build_policy
from jax_unmask.runtime.config import ConfigError
from jax_unmask.runtime.placement import Placement

RIGHT = json.dumps({"question": "1 + 1?", "answer": "It is 2.\n#### 2"})


@pytest.fixture(autouse=True)
def nothing_is_compiled(monkeypatch):
    def refuse(*arguments, **settings):
        raise AssertionError("the program was about to be compiled")

    monkeypatch.setattr(rollouts, "rollout", refuse)
    monkeypatch.setattr(policy_grpo.PolicyLearner, "update", refuse)
    monkeypatch.setattr(sft.SftLearner, "step", refuse)
    monkeypatch.setattr(tracerl.TraceLearner, "update", refuse)


@pytest.fixture
def message(tmp_path):
    """The one line that the command ends with."""

    def of(config: ConfigDict) -> str:
        workdir = tmp_path / "workdir"
        with pytest.raises(SystemExit) as stopped, command_line.clear_errors():
            train.train(config, workdir)
        text = stopped.value.code  # A text is printed to standard error, and the status is 1.
        assert isinstance(text, str)
        assert text.startswith("error: ")
        assert "\n" not in text
        assert not (workdir / "config.json").exists(), "the workdir now belongs to the mistake"
        return text

    return of


@pytest.fixture
def model_copy(tiny_model_dir, tmp_path):
    return shutil.copytree(tiny_model_dir, tmp_path / "model")


def edit_json(path, **changes):
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in fields.items() if value is not None}))


def gsm8k(tiny_config, tmp_path, *lines, **changes):
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.jsonl").write_text("".join(line + "\n" for line in lines))
    changes = {"task__path": str(data), "task__prompt_length": 48} | changes
    return tiny_config(task__name="gsm8k", task__truncate_prompts=True, **changes)


class TestModel:
    def test_no_such_directory(self, tiny_config, message):
        text = message(tiny_config(model__path="/no/such/model"))
        assert "model directory /no/such/model does not exist" in text

    def test_a_file_instead_of_a_directory(self, tiny_config, message, tiny_model_dir):
        path = tiny_model_dir / "config.json"
        text = message(tiny_config(model__path=str(path)))
        assert f"{path} is a file; give the directory that holds config.json" in text

    def test_no_path(self, tiny_config, message):
        text = message(tiny_config(model__path=""))
        assert "config.model.path = '': a denoiser is needed. Give one of the shipped" in text

    def test_no_tokenizer(self, tiny_config, message, model_copy):
        (model_copy / "tokenizer.json").unlink()
        text = message(tiny_config(model__path=str(model_copy)))
        assert f"{model_copy} holds no tokenizer.json; add the file" in text

    def test_no_mask_token(self, tiny_config, message, model_copy):
        edit_json(model_copy / "config.json", mask_token_id=None)
        edit_json(model_copy / "tokenizer_config.json", mask_token=None)
        text = message(tiny_config(model__path=str(model_copy)))
        assert "names no mask token: set mask_token_id in config.json" in text

    def test_no_weights(self, tiny_config, message, model_copy):
        (model_copy / "model.safetensors").unlink()
        assert "safetensors" in message(tiny_config(model__path=str(model_copy)))

    def test_canvas_too_long_for_it(self, tiny_config, message):
        text = message(tiny_config(rollout__gen_length=48, rollout__block_length=48))
        assert "config.task.prompt_length = 17: with a canvas of 48 that makes 65 tokens" in text
        assert "more than the 64 that the denoiser was made for" in text


class TestCache:
    @pytest.mark.parametrize("recipe", ["policy_grpo", "tracerl"])
    def test_for_another_kind_of_attention(self, recipe, tiny_config, message):
        text = message(tiny_config(recipe, rollout__cache="block"))
        assert "config.rollout.cache = 'block': cache 'block' is for block-causal" in text

    def test_unknown(self, tiny_config, message):
        text = message(tiny_config(rollout__cache="duel"))
        assert "config.rollout.cache = 'duel': cache 'duel' is unknown; choose one of none" in text
        text = message(tiny_config(eval__caches=("dual:every=2",)))
        assert "there is no setting 'every'" in text


class TestData:
    def test_prompt_longer_than_its_budget(self, tiny_config, message):
        text = message(tiny_config(task__prompt_length=16))
        assert "task 'sudoku', split 'train', example 0" in text
        assert "has 17 tokens, more than prompt_length=16; raise prompt_length" in text

    def test_target_longer_than_the_canvas(self, tiny_config, message):
        config = tiny_config("sft", data__gen_length=15)
        assert "has 16 tokens, more than gen_length=15; raise gen_length" in message(config)

    def test_no_such_path(self, tiny_config, message):
        text = message(tiny_config(task__name="gsm8k", task__path="/no/such/data"))
        assert "path='/no/such/data' does not exist; give a directory with train.jsonl" in text

    def test_task_that_needs_a_path(self, tiny_config, message):
        text = message(tiny_config(task__name="math"))
        assert "config.task.path = None" in text
        assert "Give the directory that holds train.jsonl, test.jsonl" in text

    def test_two_sources(self, tiny_config, message, tmp_path):
        config = gsm8k(tiny_config, tmp_path, RIGHT, task__tfds_data_dir="/somewhere")
        assert "exclude each other; give one of them" in message(config)

    def test_unprepared_tensorflow_dataset(self, tiny_config, message, tmp_path):
        text = message(tiny_config(task__name="gsm8k", task__tfds_data_dir=str(tmp_path)))
        assert "data set 'gsm8k' has not been prepared in" in text

    @pytest.mark.parametrize("lines", [(), ("", "  ")])
    def test_empty(self, tiny_config, message, tmp_path, lines):
        text = message(gsm8k(tiny_config, tmp_path, *lines))
        assert "train.jsonl holds no examples; it needs one JSON object per line" in text

    def test_too_small_for_a_training_split(self, tiny_config, message, tmp_path):
        # The first of every fifteen is held out for validation.
        text = message(gsm8k(tiny_config, tmp_path, RIGHT))
        assert "task 'gsm8k' has no examples in split 'train'" in text

    @pytest.mark.parametrize(
        ("line", "problem"),
        [
            ('{"question": "1 + 1?", ', "malformed JSON"),
            ('["1 + 1?", "2"]', "expected a JSON object, found list"),
            ('{"question": "1 + 1?"}', "field 'answer' is missing; found ['question']"),
            ('{"question": "1 + 1?", "answer": 2}', "field 'answer' must be text, found 2"),
            ('{"question": "1 + 1?", "answer": "2"}', "must end in '#### NUMBER', found '2'"),
            ('{"question": "1 + 1?", "answer": "#### two"}', "must end in '#### NUMBER'"),
        ],
    )
    def test_malformed_line(self, tiny_config, message, tmp_path, line, problem):
        text = message(gsm8k(tiny_config, tmp_path, RIGHT, RIGHT, line, RIGHT))
        assert f"{tmp_path / 'data' / 'train.jsonl'}, line 3: " in text
        assert problem in text

    def test_tokenizer_without_a_chat_template(self, tiny_config, message, tmp_path):
        text = message(gsm8k(tiny_config, tmp_path, RIGHT, RIGHT))
        assert "has no chat template, and lacks <|start_header_id|>" in text

    def test_task_without_a_closed_vocabulary(self, tiny_config, message, tmp_path):
        data = str(tmp_path)
        text = message(tiny_config("sft", task__name="gsm8k", task__path=data))
        assert "task 'gsm8k' has no closed vocabulary to start a model from" in text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"rollout__block_length": 5},
            "config.rollout.block_length = 5: it must divide config.rollout.gen_length = 16. "
            "Change one of them; with rollout.block_length = 5, rollout.gen_length could be 15 or "
            "20",
        ),
        ({"rollout__group_size": 1}, "config.rollout.group_size = 1: a group of fewer than two"),
        ({"rollout__slots": -1}, "config.rollout.slots = -1: it must not be neg"),
        ({"rollout__prompts_per_step": 0}, "config.rollout.prompts_per_step = 0: it must be pos"),
        ({"task__name": "gsm8"}, "config.task.name = 'gsm8'"),
        ({"task__name": "gsm8"}, "did you mean gsm8k"),
        ({"policy__distribution": "dpl"}, "config.policy.distribution = 'dpl'"),
        ({"policy__network__hidden_dim": 10}, "hidden_dim = 10"),
        (
            {"policy__network__hidden_size": 12},
            "config.policy.network.hidden_size = 12: the denoiser's hidden states are 16 wide",
        ),
        ({"policy__network__top_k": 10}, "policy.network.top_k = 10: the denoiser has 9 tokens"),
        ({"policy__init_from": "/no/such"}, "/no/such/policy_config.json does not exist"),
        (
            {"expert__count": 1, "expert__block_length": 4, "rollout__block_length": 4},
            "config.expert.count = 1: expert steering is for full diffusion. Set expert.count = 0",
        ),
        (
            {"expert__imitation": 1.0, "expert__imitation_steps": 5},
            "config.expert.imitation = 1.0: there is no expert to imitate (expert.count = 0)",
        ),
        (
            {"expert__imitation": 1.0, "expert__count": 1, "expert__block_length": 4},
            "config.expert.imitation = 1.0: expert.imitation_steps = 0",
        ),
        (
            {"expert__count": 1, "expert__block_length": 5},
            "config.expert.block_length = 5: it must divide config.rollout.gen_length = 16",
        ),
        (
            {"expert__count": 1, "expert__block_length": 4, "expert__policy": "treshold"},
            "config.expert.policy = 'treshold'",
        ),
        ({"model__quantization": "int4"}, "config.model.quantization = 'int4'"),
        ({"optimizer__lr": float("nan")}, "config.optimizer.lr = nan: it must be positive"),
        (
            {"optimizer__warmup_steps": 6},
            "config.optimizer.warmup_steps = 6: it leaves nothing of the run's 6 optimiser steps",
        ),
        (
            {"eval__after_training": True, "eval__block_lengths": (16, 5)},
            "config.eval.block_lengths = (16, 5): block length 5 does not divide",
        ),
        (
            {
                "eval__after_training": True,
                "eval__block_lengths": (16,),
                "eval__policies": ("treshold",),
            },
            "config.eval.policies = 'treshold'",
        ),
        ({"seed": 2**32}, "seed=4294967296 must be in 0..2**32 - 1"),
    ],
)
def test_impossible_settings(tiny_config, message, changes, expected):
    assert expected in message(tiny_config(**changes))


def test_impossible_settings_of_sft(tiny_config, message):
    text = message(tiny_config("sft", model__num_heads=3))
    assert "config.model.num_heads = 3: it must divide config.model.hidden_size = 8" in text
    text = message(tiny_config("sft", masking__suffix_block_length=5))
    assert "config.masking.suffix_block_length = 5: it must divide config.data.gen_length" in text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"learner__surrogate": "tracer"}, "config.learner.surrogate = 'tracer': there is no such"),
        ({"learner__surrogate": "espo"}, "config.value.enabled = True: values belong to the steps"),
        ({"filter__low": 0.9}, "config.filter.low = 0.9: it must not exceed config.filter.high"),
        ({"rollout__group_size": 1}, "config.rollout.group_size = 1: a group of fewer than two"),
        ({"rollout__policy": "treshold"}, "config.rollout.policy = 'treshold'"),
        ({"rollout__policy": "dynamic_edit"}, "it edits tokens that were filled"),
        ({"learner__num_pads": -2}, "config.learner.num_pads = -2: it is a number of tokens"),
        ({"learner__block_length": 8}, "family 'llada', has full attention. Leave it out"),
        ({"learner__draws": 0}, "config.learner.draws = 0: it must be positive"),
        ({"rollout__parts": 0}, "config.rollout.parts = 0: it must be positive"),
        (
            {"rollout__parts": 4, "rollout__prompts_per_step": 6},
            "config.rollout.parts = 4: it must divide config.rollout.prompts_per_step = 6. Change "
            "one of them; with rollout.parts = 4, rollout.prompts_per_step could be 4 or 8",
        ),
        ({"learner__kl": "k4"}, "config.learner.kl = 'k4': there is no such choice"),
        ({"reward__advantage": "centered"}, "did you mean 'centred'?"),
        ({"value__gamma": 1.5}, "config.value.gamma = 1.5: it must lie between 0.0 and 1.0"),
        ({"lora__rank": -1}, "config.lora.rank = -1"),
        (
            {"model__param_dtype": "bfloat16"},
            "config.model.param_dtype = 'bfloat16': steps of reinforcement are too small for "
            "weights of 16 bits",
        ),
        (
            {"lora__rank": 2, "lora__targets": ("q",)},
            "('q',): target 'q' is no linear",
        ),
        ({"process__judge": "steps"}, "steps of task 'sudoku' cannot be verified"),
        ({"process__judge": "model"}, "config.process.model = '': it names no model"),
        (
            {"process__judge": "steps", "value__enabled": False},
            "config.process.judge = 'steps': rewards of parts need a value model",
        ),
        (
            {"process__judge": "model", "process__model": "m", "process__url": "host"},
            "config.process.url = 'host': it is no address",
        ),
        (
            {
                "process__judge": "model",
                "process__model": "m",
                "process__api_key_variable": "NO_SUCH_KEY",
            },
            "config.process.api_key_variable = 'NO_SUCH_KEY': the environment has no such variable",
        ),
    ],
)
def test_impossible_settings_of_tracerl(tiny_config, message, changes, expected):
    assert expected in message(tiny_config("tracerl", **changes))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"learner__method": "semi-ar"}, "config.learner.method = 'semi-ar': there is no such"),
        ({"learner__mask_low": 0.95}, "config.learner.mask_low = 0.95: it must not exceed"),
        ({"learner__method": "ar"}, "logits of family 'llada' are not shifted"),
        ({"learner__method": "block"}, "family 'llada', has full attention. Choose 'random'"),
        ({"model__attention_block": 4}, "family 'sdar', has block attention. Choose 'block'"),
        (
            {"learner__method": "semi_ar", "data__length_buckets": (8, 20)},
            "config.data.length_buckets = (8, 20): it must hold lengths in tokens, multiples of 16",
        ),
        (
            {"learner__method": "random", "data__length_buckets": (8,)},
            "config.data.length_buckets = (8,): learner.num_pads = -1 trains all padding",
        ),
    ],
)
def test_impossible_settings_of_state_sft(tiny_config, message, changes, expected):
    assert expected in message(tiny_config("state_sft", **changes))


def test_whole_texts_are_not_for_block_attention(tiny_config, message):
    text = message(tiny_config("sft", model__attention_block=4))
    assert "config.model.attention_block = 4" in text
    assert "use recipe state_sft" in text


@pytest.mark.parametrize(
    ("recipe", "feeds", "parts", "expected"),
    [
        ("policy_grpo", 3, 1, "prompts_per_step = 2: its 2 prompts do not divide among 3 feeding"),
        ("policy_grpo", 1, 8, "the 4 rows of a rollout do not divide among mesh.data x mesh.fsdp"),
        ("sft", 3, 6, "config.data.batch_size = 4: its 4 rows do not divide among 3 feeding"),
        ("tracerl", 1, 3, "do not divide among mesh.data x mesh.fsdp = 3 parts"),
    ],
)
def test_batch_that_a_mesh_does_not_divide(
    recipe, feeds, parts, expected, tiny_config, message, monkeypatch
):
    monkeypatch.setattr(Placement, "feeds", feeds)
    monkeypatch.setattr(Placement, "parts", parts)
    text = message(tiny_config(recipe))
    assert expected in text
    assert "Give a multiple, or another mesh (data=-1, fsdp=1, tensor=1)." in text


@pytest.mark.parametrize("recipe", ["policy_grpo", "tracerl"])
def test_parts_that_the_prompts_of_a_process_do_not_fill(recipe, tiny_config, message, monkeypatch):
    monkeypatch.setattr(Placement, "feeds", 2)
    text = message(tiny_config(recipe, rollout__prompts_per_step=6, rollout__parts=2))
    assert "config.rollout.parts = 2: the 3 prompts of each of 2 feeding processes do not" in text


def test_mesh_of_another_machine(tiny_config, message):
    text = message(tiny_config(mesh__fsdp=3))
    assert "config.mesh = 'data=-1, fsdp=3, tensor=1'" in text
    assert "does not fit 1 devices" in text


@pytest.mark.parametrize(("axis", "dimension"), [("tensor", "num_heads"), ("fsdp", "hidden_size")])
def test_mesh_that_does_not_divide_the_denoiser(axis, dimension):
    sizes = dict.fromkeys(("data", "fsdp", "tensor"), 1) | {axis: 3}
    mesh = types.SimpleNamespace(shape=sizes)
    with pytest.raises(ConfigError, match=rf"mesh.{axis} = 3: it does not divide .* {dimension} ="):
        check_mesh(tiny.denoiser_config(), mesh)


def test_unknown_and_missing_keys(tiny_config, message):
    config = tiny_config()
    with config.unlocked():
        config.rollout.gen_lenght = 16
    expected = "config.rollout.gen_lenght = 16: there is no such key. Did you mean 'gen_length'?"
    assert expected in message(config)
    del config.rollout["gen_lenght"]
    del config["recipe"]
    assert "config.recipe = None: the key is missing. Choose one of" in message(config)


def test_policy_of_another_network(tiny_config, message, tmp_path):
    policy = build_policy(tiny_config(policy__network__hidden_dim=16), tiny.denoiser_config())
    policies.save_policy(tmp_path / "policy", policy, policy.init_params(jax.random.key(0)))
    text = message(tiny_config(policy__init_from=str(tmp_path / "policy")))
    assert "its network is another one: hidden_dim (16 there, 8 here)" in text


class TestFlags:
    @pytest.fixture
    def parse(self, monkeypatch):
        """Parses the flags of a command, as `command_line.run` does."""

        def parse(*arguments: str) -> str | None:
            values = flags.FlagValues()
            config_flags.DEFINE_config_file("config", flag_values=values, lock_config=True)
            argv = ["train", *arguments]
            monkeypatch.setattr(flags, "FLAGS", values)
            monkeypatch.setattr(sys, "argv", argv)
            with pytest.raises(SystemExit) as stopped:
                command_line.parse_flags(argv)
            assert "\n" not in stopped.value.code
            return stopped.value.code

        return parse

    @pytest.fixture
    def experiment(self, write_experiment, tmp_path):
        return str(write_experiment(tmp_path / "experiment.py", "sft"))

    def test_no_such_file(self, parse):
        assert "--config=nope.py:x: there is no file nope.py" in parse("--config=nope.py:x")
        assert "there is no file nope.py" in parse("--config", "nope.py")

    def test_unknown_key(self, parse, experiment):
        text = parse(f"--config={experiment}", "--config.data.batch_sise=3")
        assert text == (
            "error: --config.data.batch_sise: there is no such key. Did you mean 'batch_size'?"
        )
        assert "there is no such key. Keys and" in parse(f"--config={experiment}", "--config.qq=1")

    def test_value_of_another_type(self, parse, experiment):
        text = parse(f"--config={experiment}", "--config.data.batch_size=many")
        assert "--config.data.batch_size=many" in text

    def test_unknown_flag(self, parse, experiment):
        assert "worddir" in parse(f"--config={experiment}", "--worddir=x")

    def test_file_that_refuses_its_argument(self, parse, tmp_path):
        path = tmp_path / "experiment.py"
        path.write_text("def get_config(task):\n    raise ValueError(f'{task} is unknown')\n")
        text = parse(f"--config={path}:chess")
        assert text.endswith("chess is unknown")


def test_as_a_command(write_experiment, tmp_path):
    path = write_experiment(tmp_path / "experiment.py", model__path="/no/such/model")
    result = subprocess.run(
        [
            *(sys.executable, "-m", "jax_unmask.train"),
            *(f"--config={path}", f"--workdir={tmp_path / 'workdir'}"),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        timeout=500,
    )
    assert result.returncode == 1
    assert result.stderr == "error: model directory /no/such/model does not exist\n"
    assert result.stdout == ""
