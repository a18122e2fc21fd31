"""Wrong input to `python -m jax_unmask.train`: one line that says what and how to mend it.

Nearly all cases call the command's function in this process, because each start costs seconds.
"""

import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import types

import jax
import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

import hub_cache
import tiny
from jax_unmask import denoisers, policies, recipes
from jax_unmask.commands import bench, command_line, convert, generate, harness, hub, serve, train
from jax_unmask.denoisers.sharding import check_mesh
from jax_unmask.recipes import policy_grpo, rollouts, sft, tracerl
from jax_unmask.recipes.policy_grpo import build_policy
from jax_unmask.runtime.placement import Placement
from jax_unmask.settings import ConfigError, SettingError
from jax_unmask.tasks import sandbox
from jax_unmask.tasks.judges.language_model import JudgeError
from jax_unmask.tasks.workers import WorkerError

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


MISSING = "/no/such"
POLICIES = pathlib.Path(__file__).parents[1] / "fixtures" / "policy"
UNFIT = f"learned:{POLICIES}/canvas_8"  # It has one vector for each of 8 positions.
WRONG = [
    ("policy_grpo", {"model__path": MISSING}, "config.model.path = '/no/such'"),
    ("policy_grpo", {"model__path": ""}, "config.model.path = ''"),
    (
        "policy_grpo",
        {"rollout__gen_length": 48, "rollout__block_length": 48},
        "config.task.prompt_length = 17",
    ),
    (
        "policy_grpo",
        {"task__prompt_length": 16},
        "config.task.prompt_length = 16",
    ),
    ("sft", {"data__gen_length": 15}, "config.data.gen_length = 15"),
    ("policy_grpo", {"task__name": "gsm8k", "task__path": MISSING}, "path='/no/such' does not"),
    ("policy_grpo", {"task__name": "sudoku_puzzles"}, "config.task.path = None"),
    (
        "policy_grpo",
        {"policy__network__position_embedding": 4},
        "config.policy.network.kind = 'confidence': position_embedding=4",
    ),
    (
        "policy_grpo",
        {"expert__count": 1, "expert__block_length": 16, "expert__policy": UNFIT},
        f"config.expert.policy = '{UNFIT}'",
    ),
    ("tracerl", {"rollout__policy": UNFIT}, f"config.rollout.policy = '{UNFIT}'"),
    ("sft", {"eval__block_lengths": ()}, "config.eval.block_lengths = ()"),
    ("sft", {"task__name": "gsm8k", "task__path": "."}, "config.model.path = None: task 'gsm8k'"),
]


@pytest.mark.parametrize(("recipe", "changes", "named"), WRONG)
def test_a_model_or_data_that_cannot_be_used(tiny_config, message, recipe, changes, named):
    assert named in message(tiny_config(recipe, **changes))


@pytest.mark.parametrize(
    ("file", "named"),
    [
        ("tokenizer.json", "tokenizer.json"),
        ("model.safetensors", "safetensors"),
        ("", "mask_token_id in config.json"),
    ],
)
def test_a_model_without_one_of_its_parts(tiny_config, message, model_copy, file, named):
    if file:
        (model_copy / file).unlink()
    else:
        edit_json(model_copy / "config.json", mask_token_id=None)
        edit_json(model_copy / "tokenizer_config.json", mask_token=None)
    assert named in message(tiny_config(model__path=str(model_copy)))


@pytest.mark.parametrize("recipe", sorted(tiny.SETTINGS))
def test_examples_are_encoded_before_weights_are_loaded(
    tiny_config, message, tiny_model_dir, monkeypatch, recipe
):
    def refuse(*arguments, **settings):
        raise AssertionError("weights were about to be loaded")

    monkeypatch.setattr(denoisers, "from_pretrained", refuse)
    config = tiny_config(recipe, task__name="countdown", model__path=str(tiny_model_dir))
    text = message(config)  # Whose words are not those of the model.
    assert "config.task.name = 'countdown'" in text
    assert f"model.path = {str(tiny_model_dir)!r}" in text


def test_a_workdir_that_is_a_file(tiny_config, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ConfigError, match=f"--workdir = '{file}'"):
        train.train(tiny_config(), file)


@pytest.mark.parametrize("after_training", [False, True])
def test_data_is_read_before_weights(tiny_config, message, model_copy, after_training):
    (model_copy / "model.safetensors").unlink()
    data = model_copy / "train.jsonl"
    data.write_text(RIGHT)
    changes = {"task__name": "gsm8k", "model__path": str(model_copy)}
    changes["eval__block_lengths"] = (16,)
    path = str(data) if after_training else "/no/such/data"
    text = message(tiny_config(task__path=path, eval__after_training=after_training, **changes))
    assert f"path={path!r}" in text
    assert ("split 'test'" if after_training else "train.jsonl") in text


@pytest.mark.parametrize(
    ("lines", "changes", "named"),
    [
        ((), {}, "train.jsonl"),
        (("", "  "), {}, "train.jsonl"),
        # The first of every fifteen is held out.
        ((RIGHT,), {"task__settings": ("hold_out=15",)}, "task 'gsm8k' "),
        ((RIGHT, RIGHT, '["1", "2"]', RIGHT), {}, "line 3: "),
        ((RIGHT, RIGHT), {}, "lacks <|start_header_id|>"),
    ],
)
def test_data_that_cannot_be_read(tiny_config, message, tmp_path, lines, changes, named):
    text = message(gsm8k(tiny_config, tmp_path, *lines, **changes))
    assert named in text
    assert "config.task." in text


def test_data_is_read_before_weights_are_downloaded(
    tiny_config, message, tiny_model_dir, monkeypatch
):
    asked = []

    def download(name, *, allow_patterns, **_):
        asked.append(allow_patterns)
        return str(tiny_model_dir)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    changes = {"task__name": "gsm8k", "task__path": "/no/such/data"}
    assert "/no/such/data" in message(tiny_config(model__path="me/model", **changes))
    assert not asked
    text = message(tiny_config(model__path="me/model", task__name="countdown"))
    assert "config.task.name = 'countdown'" in text
    assert asked and not any("*.safetensors" in patterns for patterns in asked)


def test_two_sources_of_data(tiny_config, message, tmp_path, monkeypatch):
    config = gsm8k(tiny_config, tmp_path, RIGHT, task__tfds_data_dir="/somewhere")
    text = message(config)
    assert "data_dir='/somewhere'" in text and f"path='{tmp_path / 'data'}'" in text
    hub_cache.use(monkeypatch, tmp_path)  # Neither a network nor a copy.
    text = message(tiny_config(task__name="gsm8k", task__tfds_data_dir=str(tmp_path)))
    assert "'gsm8k'" in text and f" {tmp_path}/gsm8k" in text
    assert "openai/gsm8k" in text and "--config.task.path=DIR" in text


STORE = "gs://bucket/it"
_EXPERT = {"expert__count": 1, "expert__block_length": 4}
_JUDGE = {"process__judge": "model", "process__model": "m"}
# Recipe, changes, and what the message names: full keys and values, and what else there is to say.
_LONG = {"rollout__gen_length": 48, "rollout__block_length": 48}
IMPOSSIBLE = [
    *[
        (each, _LONG, "task.prompt_length = 17", "65 tokens")
        for each in ("policy_grpo", "policy_environments", "tracerl", "joint")
    ],
    *[
        (
            each,
            {"model__path": "sudoku", "data__gen_length": 512},
            "task.prompt_length = 17",
            "529 tokens",
        )
        for each in ("sft", "state_sft")
    ],
    ("policy_grpo", {"rollout__block_length": 5}, "rollout.block_length = 5", "15 or 20"),
    ("policy_grpo", {"rollout__group_size": 1}, "rollout.group_size = 1", "at least 2"),
    ("policy_grpo", {"rollout__slots": -1}, "rollout.slots = -1", "at least 0"),
    ("policy_grpo", {"rollout__cache": "duel"}, "rollout.cache = 'duel'", "dual"),
    ("policy_grpo", {"task__name": "gsm8"}, "task.name = 'gsm8'", "gsm8k"),
    ("policy_grpo", {"policy__distribution": "dpl"}, "policy.distribution = 'dpl'", "'dpls'"),
    ("policy_grpo", {"policy__distribution": "threshold"}, "policy.distribution", "dpls"),
    ("policy_grpo", {"policy__network__hidden_dim": 10}, "policy.network.hidden_dim = 10", ""),
    ("policy_grpo", {"policy__network__hidden_size": 12}, "policy.network.hidden_size = 12", "16"),
    ("policy_grpo", {"policy__network__top_k": 10}, "policy.network.top_k = 10", "9 tokens"),
    ("policy_grpo", {"policy__init_from": "/no/such"}, "/no/such/policy_config.json", ""),
    ("policy_grpo", {"model__path": STORE}, STORE, "mount"),
    ("policy_grpo", {"policy__init_from": STORE}, STORE, "mount"),
    ("policy_grpo", {"task__name": "gsm8k", "task__path": STORE}, STORE, "mount"),
    *[
        (each, {"export": STORE}, f"export = {STORE!r}", "mount")
        for each in ("sft", "tracerl", "joint")
    ],
    ("policy_grpo", _EXPERT | {"rollout__block_length": 4}, "expert.count = 1", "full diffusion"),
    (
        "policy_grpo",
        {"expert__imitation": 1.0, "expert__imitation_steps": 5},
        "expert.imitation = 1",
        "",
    ),
    ("policy_grpo", _EXPERT | {"expert__imitation": 1.0}, "expert.imitation = 1.0", "steps"),
    ("policy_grpo", _EXPERT | {"expert__block_length": 5}, "expert.block_length = 5", "16"),
    ("policy_grpo", _EXPERT | {"expert__policy": "treshold"}, "expert.policy = 'treshold'", ""),
    ("policy_grpo", {"model__quantization": "int4"}, "model.quantization = 'int4'", "'int8'"),
    ("policy_grpo", {"optimizer__lr": float("nan")}, "optimizer.lr = nan", "finite"),
    ("policy_grpo", {"optimizer__warmup_steps": 6}, "optimizer.warmup_steps = 6", "6 optimiser"),
    ("policy_grpo", {"seed": 2**32}, "seed = 4294967296", ""),
    ("policy_grpo", {"eval__block_lengths": (16, 5)}, "eval.block_lengths = (16, 5)", "5"),
    ("policy_grpo", {"eval__policies": ("treshold",)}, "eval.policies = 'treshold'", ""),
    ("policy_grpo", {"eval__caches": ("dual:every=2",)}, "eval.caches = 'dual:every=2'", "every"),
    ("policy_grpo", {"eval__curves": ("/no/such",)}, "eval.curves", "/no/such"),
    ("policy_grpo", {"eval__viewer": ("threshold:=",)}, "eval.viewer", ""),
    ("policy_grpo", {"eval__axes": ("seed=1|2",)}, "eval.axes", "jax_unmask.eval"),
    ("sft", {"model__num_heads": 3}, "model.num_heads = 3", "model.hidden_size = 8"),
    ("sft", {"model__num_heads": 8, "model__num_kv_heads": 8}, "model.hidden_size = 8", "pairs"),
    ("sft", {"masking__suffix_block_length": 5}, "masking.suffix_block_length = 5", "data.gen"),
    ("sft", {"learner__positions_per_chunk": -1}, "learner.positions_per_chunk = -1", "at least 0"),
    ("sft", {"model__max_length": 8}, "model.max_length = 8", "33"),
    ("sft", {"model__attention_block": 4}, "model.attention_block = 4", "state_sft"),
    ("tracerl", {"learner__surrogate": "tracer"}, "learner.surrogate = 'tracer'", "trace"),
    ("tracerl", {"learner__surrogate": "espo"}, "value.enabled = True", "learner.surrogate"),
    ("tracerl", {"filter__low": 0.9}, "filter.low = 0.9", "filter.high = 0.8"),
    ("tracerl", {"rollout__policy": "treshold"}, "rollout.policy = 'treshold'", ""),
    ("tracerl", {"rollout__policy": "dynamic_edit"}, "rollout.policy", "changes"),
    ("tracerl", {"rollout__policy": "reconsider"}, "rollout.policy", "changes"),
    ("joint", {"policy__network__take_back": True}, "policy.network.take_back", "True"),
    *[
        (each, {"checkpoint__best_metric": metric}, f"checkpoint.best_metric = {metric!r}", more)
        for each, metric, more in (
            ("joint", "acuracy", "trained_tokens/denoiser"),
            ("policy_environments", "acuracy", "accuracy"),
            ("policy_environments", "accuracy/gsm8k", "sudoku_1"),
            ("policy_grpo", "accuracy_at_small_alpha", "accuracy"),
            ("policy_grpo", "expert_reward", "reward"),
            ("tracerl", "process_score", "value_loss"),
        )
    ],
    ("joint", {"policy__network__hidden_size": 12}, "policy.network.hidden_size = 12", "16"),
    ("joint", {"policy__init_from": "/no/such"}, "/no/such/policy_config.json", ""),
    ("joint", {"rollout__cache": "block"}, "rollout.cache = 'block'", "block-causal"),
    (
        "policy_environments",
        {"environments": ("task.name=sudoku", "rollout.cache=block")},
        "config.environments[1] = 'rollout.cache=block'",
        "config.rollout.cache = 'block'",
    ),
    (
        "policy_environments",
        {
            "environments": (
                "task.name=sudoku",
                "expert.count=1 expert.block_length=16 expert.policy=treshold",
            )
        },
        "config.environments[1]",
        "config.expert.policy = 'treshold'",
    ),
    (
        "policy_environments",
        {"environments": ("task.name=sudoku", "task.name=gsm8k task.path=/no/such")},
        "/no/such",
        "",
    ),
    ("joint", {"model__param_dtype": "bfloat16"}, "config.model.param_dtype", "denoiser.lora.rank"),
    ("joint", {"denoiser__learner__block_length": 8}, "config.denoiser.learner.block_length", ""),
    (
        "joint",
        {"denoiser__lora__rank": 2, "denoiser__lora__targets": ("q",)},
        "config.denoiser.lora.targets",
        "query",
    ),
    (
        "joint",
        {"denoiser__optimizer__schedule": "cosine", "denoiser__optimizer__warmup_steps": 99},
        "config.denoiser.optimizer.warmup_steps = 99",
        "6 optimiser",
    ),
    ("tracerl", {"rollout__cache": "block"}, "rollout.cache = 'block'", "block-causal"),
    ("tracerl", {"rollout__batches": 0}, "rollout.batches = 0", "at least 1"),
    (
        "tracerl",
        {"rollout__batches": 4, "rollout__prompts_per_step": 6},
        "rollout.batches = 4",
        "rollout.prompts_per_step = 6",
    ),
    ("tracerl", {"learner__num_pads": -2}, "learner.num_pads = -2", "at least -1"),
    ("tracerl", {"learner__block_length": 8}, "learner.block_length = 8", "full attention"),
    ("tracerl", {"learner__draws": 0}, "learner.draws = 0", "at least 1"),
    ("tracerl", {"reward__advantage": "centered"}, "reward.advantage", "'centred'"),
    ("tracerl", {"value__gamma": 1.5}, "value.gamma = 1.5", "at most 1"),
    ("tracerl", {"model__param_dtype": "bfloat16"}, "model.param_dtype", "lora.rank"),
    ("tracerl", {"lora__rank": 2, "lora__targets": ("q",)}, "lora.targets = ('q',)", "query"),
    ("tracerl", {"process__judge": "steps"}, "process.judge = 'steps'", "sudoku"),
    ("tracerl", {"process__judge": "model"}, "process.model = ''", "process.url"),
    ("tracerl", _JUDGE | {"value__enabled": False}, "process.judge", "value.enabled"),
    ("tracerl", _JUDGE | {"process__url": "host"}, "process.url = 'host'", "http"),
    ("tracerl", _JUDGE | {"process__api_key_variable": "NO_SUCH"}, "process.api_key_variable", ""),
    ("state_sft", {"learner__method": "semi-ar"}, "learner.method = 'semi-ar'", "'semi_ar'"),
    ("state_sft", {"learner__mask_low": 0.95}, "learner.mask_low = 0.95", "learner.mask_high"),
    ("state_sft", {"learner__method": "ar"}, "learner.method = 'ar'", "llada"),
    ("sft", {"masking__causal_fraction": 0.5}, "masking.causal_fraction = 0.5", "logits_shift"),
    (
        "sft",
        {"model__path": "sudoku", "masking__causal_fraction": 0.5},
        "masking.causal_fraction = 0.5",
        "logits_shift",
    ),
    (
        "state_sft",
        {"model__path": "sudoku", "learner__method": "ar"},
        "learner.method = 'ar'",
        "llada",
    ),
    (
        "state_sft",
        {"model__attention_block": 4, "learner__method": "trace", "learner__block_length": 5},
        "learner.block_length = 5",
        "data.gen_length",
    ),
    (
        "state_sft",
        {"model__attention_block": 4, "model__logits_shift": True},
        "model.logits_shift = True",
        "attention_block",
    ),
    ("state_sft", {"model__attention_block": 4}, "learner.method = 'random'", "'block'"),
    (
        "state_sft",
        {"learner__method": "semi_ar", "data__length_buckets": (8, 20)},
        "data.length_buckets = (8, 20)",
        "16",
    ),
    ("state_sft", {"data__length_buckets": (8,)}, "data.length_buckets", "learner.num_pads"),
]


@pytest.mark.parametrize(("recipe", "changes", "named", "more"), IMPOSSIBLE)
def test_impossible_settings(tiny_config, message, monkeypatch, recipe, changes, named, more):
    def refuse(*arguments, **settings):
        raise AssertionError("weights were about to be loaded")

    monkeypatch.setattr(denoisers, "from_pretrained", refuse)
    if any(key.startswith("eval") for key in changes):
        changes = {"eval__block_lengths": (16,), "eval__after_training": True} | changes
    text = message(tiny_config(recipe, **changes))
    assert named in text
    assert more in text


@pytest.mark.parametrize(
    ("recipe", "feeds", "parts", "named"),
    [
        ("policy_grpo", 3, 1, "config.rollout.prompts_per_step = 2"),
        ("policy_grpo", 1, 8, "config.rollout.prompts_per_step = 2"),
        ("sft", 3, 6, "config.data.batch_size = 4"),
        ("tracerl", 1, 3, "config.rollout.prompts_per_step = 2"),
    ],
)
def test_batch_that_a_mesh_does_not_divide(
    recipe, feeds, parts, named, tiny_config, message, monkeypatch
):
    monkeypatch.setattr(Placement, "feeds", feeds)
    monkeypatch.setattr(Placement, "shards", parts)
    text = message(tiny_config(recipe))
    assert named in text
    assert "mesh (data=-1, fsdp=1, tensor=1)." in text


def test_rows_that_an_update_cannot_spread(tiny_config):
    """Rollouts have fewer shards than updates where their products are in several."""
    settings = recipes.read(tiny_config(rollout__prompts_per_step=2, rollout__group_size=2))
    settings.check_spread(types.SimpleNamespace(shards=4))
    with pytest.raises(SettingError, match="4 rows") as raised:
        settings.check_spread(types.SimpleNamespace(shards=8))
    assert raised.value.key == "rollout.prompts_per_step"


@pytest.mark.parametrize("recipe", ["policy_grpo", "tracerl"])
def test_batches_that_the_prompts_of_a_process_leave(recipe, tiny_config, message, monkeypatch):
    monkeypatch.setattr(Placement, "feeds", 2)
    text = message(tiny_config(recipe, rollout__prompts_per_step=6, rollout__batches=2))
    assert "config.rollout.batches = 2: the 3 prompts" in text


def test_mesh_of_another_machine(tiny_config, message):
    text = message(tiny_config(mesh__fsdp=3))
    assert "config.mesh = 'data=-1, fsdp=3, tensor=1'" in text
    assert " 1 devices" in text


@pytest.mark.parametrize(("axis", "dimension"), [("tensor", "num_heads"), ("fsdp", "hidden_size")])
def test_mesh_that_does_not_divide_the_denoiser(axis, dimension):
    sizes = dict.fromkeys(("data", "fsdp", "tensor"), 1) | {axis: 3}
    mesh = types.SimpleNamespace(shape=sizes)
    with pytest.raises(ConfigError, match=rf"mesh.{axis} = 3: .* {dimension} ="):
        check_mesh(tiny.denoiser_config(), mesh)


def test_unknown_and_missing_keys(tiny_config, message):
    config = tiny_config()
    with config.unlocked():
        config.rollout.gen_lenght = 16
    text = message(config)
    assert "config.rollout.gen_lenght = 16" in text
    assert "mean rollout.gen_length?" in text
    del config.rollout["gen_lenght"]
    del config["recipe"]
    assert "config.recipe = None" in message(config)


def test_policy_of_another_network(tiny_config, message, tmp_path):
    shape = tiny.denoiser_config()
    policy = build_policy(recipes.read(tiny_config(policy__network__hidden_dim=16)), shape)
    policies.save_policy(tmp_path / "policy", policy, policy.init_params(jax.random.key(0)))
    text = message(tiny_config(policy__init_from=str(tmp_path / "policy")))
    assert "config.policy.init_from = " in text and "hidden_dim (16 there, 8 here)" in text
    policy = build_policy(recipes.read(tiny_config(policy__network__rank=True)), shape)
    policies.save_policy(tmp_path / "ranks", policy, policy.init_params(jax.random.key(0)))
    text = message(tiny_config(policy__init_from=str(tmp_path / "ranks")))
    assert "config.policy.init_from = " in text and "rank (True there, False here)" in text


def test_a_policy_that_goes_on_with_other_alphas_is_told_one_of_them(tiny_config, tmp_path):
    """The alpha that a file was told last may lie outside; such a file could not be read."""
    shape = tiny.denoiser_config()
    for alphas in ((0.01, 1.0), ()):
        saved = recipes.read(tiny_config(policy__network__alphas=alphas))
        policy = build_policy(saved, shape)
        params = policy.init_params(jax.random.key(0))
        told = {"alpha": 0.05} if alphas else {}
        policies.save_policy(tmp_path / "policy", policy, {**params, **told})
        config = tiny_config(policy__network__alphas=(0.3, 3.0))
        config.policy.init_from = str(tmp_path / "policy")
        recipe = recipes.find("policy_grpo")(recipes.read(config), tmp_path / "run")
        params = recipe.init().params
        assert 0.3 <= params["alpha"] <= 3.0
        fresh = build_policy(recipes.read(config), shape).init_params(jax.random.key(0))
        assert jax.tree.structure(params) == jax.tree.structure(fresh)


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
        assert "--config=nope.py:x: " in parse("--config=nope.py:x")
        assert "--config=nope.py: " in parse("--config", "nope.py")

    def test_shipped_experiments_have_names_and_files_of_ones_own_win(
        self, tmp_path, monkeypatch, experiment
    ):
        monkeypatch.chdir(tmp_path)
        for name in ("gsm8k", "gsm8k.py", "configs/gsm8k.py"):
            assert command_line.load_config(name).recipe == "policy_grpo"
        assert command_line.find_experiment("tracerl:full").endswith("/configs/tracerl.py:full")
        (tmp_path / "gsm8k.py").write_text(pathlib.Path(experiment).read_text())
        assert command_line.load_config("gsm8k.py").recipe == "sft"
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", flag_values=values, lock_config=True)
        monkeypatch.setattr(flags, "FLAGS", values)
        for given in (["--config=gsm8k"], ["--config", "gsm8k"]):
            command_line.parse_flags(["train", *given])
            assert values.config.recipe == "policy_grpo"
            assert command_line.default_workdir("config") == pathlib.Path("runs/gsm8k")

    @pytest.mark.parametrize(
        ("key", "meant"),
        [
            ("data.batch_sise", "data.batch_size"),
            ("dta.batch_size", "data.batch_size"),
            ("lr", "optimizer.lr"),
            ("qq", "data"),
        ],
    )
    def test_unknown_key(self, parse, experiment, key, meant):
        text = parse(f"--config={experiment}", f"--config.{key}=3")
        assert text.startswith(f"error: --config.{key}: there is no such key.")
        assert meant in text

    def test_help_lists_the_settings(self, experiment, monkeypatch, capsys):
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", flag_values=values, lock_config=True)
        monkeypatch.setattr(flags, "FLAGS", values)
        with contextlib.suppress(SystemExit):
            command_line.parse_flags(["train", f"--config={experiment}", "--help"])
        shown = capsys.readouterr().out
        assert "--config.data.batch_size: Rows of a batch" in shown
        assert "(default: 4; int; at least 1)" in shown

    def test_help_of_a_curriculum(self, tmp_path, monkeypatch, capsys):
        path = tmp_path / "stages.py"
        path.write_text(
            "from jax_unmask import recipes\nget_config = lambda: recipes.config('curriculum')"
        )
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", flag_values=values, lock_config=True)
        monkeypatch.setattr(flags, "FLAGS", values)
        with contextlib.suppress(SystemExit):
            command_line.parse_flags(["train", f"--config={path}", "--help"])
        assert "--config.stages: " in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("source", "named"),
        [
            ("raise KeyError", "line 1"),
            ("from ml_collections import ConfigDict as get_config", "config.recipe = None"),
        ],
    )
    def test_help_with_a_file_that_cannot_be_read(self, parse, tmp_path, source, named):
        path = tmp_path / "experiment.py"
        path.write_text(source)
        assert named in parse(f"--config={path}", "--help")

    def test_value_of_another_type(self, parse, experiment):
        text = parse(f"--config={experiment}", "--config.data.batch_size=many")
        assert "--config.data.batch_size=many" in text

    def test_unknown_flag(self, parse, experiment):
        assert "worddir" in parse(f"--config={experiment}", "--worddir=x")

    def test_file_that_refuses_its_argument(self, parse, tmp_path):
        path = tmp_path / "experiment.py"
        path.write_text("def get_config(task):\n    raise ValueError(f'{task} is unknown')\n")
        text = parse(f"--config={path}:chess")
        assert text.endswith("line 2: chess is unknown")

    @pytest.mark.parametrize(
        ("source", "named"),
        [
            ("def get_config(:\n", "line 1: SyntaxError: invalid syntax"),
            ("x = 1\n", "function get_config"),
            ("get_config = 3\n", "function get_config"),
            ("def get_config(): pass\n", "type NoneType"),
            ("def get_config(): return {}\n", "type dict"),
            ("import nosuch\n", "line 1: ModuleNotFoundError: "),
            ("def get_config(which): pass\n", "TypeError: get_config() missing 1 required"),
            (
                "from jax_unmask import recipes\ndef get_config():\n"
                "    config = recipes.config('sft')\n    config.optimiser.lr = 3\n",
                'mean "optimizer"',
            ),
        ],
    )
    def test_file_that_makes_no_config(self, parse, tmp_path, source, named):
        path = tmp_path / "experiment.py"
        path.write_text(source)
        text = parse(f"--config={path}")
        assert text.startswith(f"error: --config={path}")
        assert named in text


@pytest.mark.parametrize("error", [JudgeError, WorkerError, sandbox.SandboxUnavailable])
def test_errors_of_servers_and_workers_are_one_line(error):
    with pytest.raises(SystemExit) as stopped, command_line.clear_errors():
        raise error("x \x1b[2J")
    assert stopped.value.code == "error: x \\x1b[2J"


def test_an_argument_that_is_no_flag():
    with pytest.raises(SystemExit) as stopped:
        command_line.begin(["plan", "quickstart\x1b"])
    assert stopped.value.code.startswith("error: quickstart\\x1b: ")
    assert stopped.value.code.endswith("--config.KEY=VALUE")


@pytest.mark.parametrize("command", [bench, convert, generate, harness, hub, serve])
def test_wrong_arguments_are_one_line(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.parser().parse_args(["x", "--seed=x", "--no_such=1"])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and line.endswith("; --help lists the arguments")


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
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: config.model.path = '/no/such/model': ")
    assert result.stdout == ""
