"""Code from outside of the repository in every command, as docs/extending.md has it."""

import json
import shutil
import sys
import types

import jax
import jax.numpy as jnp
import pytest
from safetensors.numpy import load_file

import fake_harness
import tiny
from jax_unmask import denoisers, policies, recipes
from jax_unmask.commands import bench, generate, harness, plan, train
from jax_unmask.commands.eval import evaluate
from jax_unmask.policies.base import alphas_of
from jax_unmask.settings import ConfigError

RULE = "my_package.rules.AboveMean"
TASK = "my_package.capitals.Capitals"
SHAPE = ("--gen_length=8", "--block_length=8")
EXPERIMENT = """
import my_experiment
from jax_unmask import recipes


def get_config(recipe):
    config = my_experiment.get_config() if recipe == "policy_grpo" else recipes.config("tracerl")
    config.task.update(name={task!r}, prompt_length=12)
    config.model.update(path={model!r}, dtype="float32", param_dtype="float32")
    config.rollout.update(gen_length=8, block_length=8, prompts_per_step=2, group_size=2)
    config.reward.kind = "additive"
    config.optimizer.warmup_steps = 0
    config.train.steps = 1
    config.log.tensorboard = False
    if recipe == "tracerl":
        config.reward.alpha = 1.0
        config.filter.low = 0.0
        config.learner.update(minibatches=1, chunk_size=4)
        config.rollout.policy = {rule!r}
    else:
        config.reward.kind = "my_package.rewards.early"
        config.expert.update(count=1, policy={rule!r} + ":factor=2", block_length=8)
        config.eval.update(num_problems=2, batch_size=2, block_lengths=(8,), examples=0)
        config.eval.policies = ({rule!r} + ":factor=0.5|1",)
    return config
"""


@pytest.fixture(scope="module")
def experiment(package, model):
    """An experiment file with arguments for two recipes, all of whose parts are from outside."""
    path = package / "experiment.py"
    path.write_text(EXPERIMENT.format(task=TASK, rule=RULE, model=str(model)))
    return path


def test_a_policy_and_a_task_write_and_are_judged(model, capsys):
    task = f"--task={TASK}:reverse=true"
    generate.main([f"--model={model}", task, f"--policy={RULE}:factor=0.5", "--json", *SHAPE])
    record = json.loads(capsys.readouterr().out)
    assert record["prompt"] == "Tehran: "
    assert (record["policy"], record["score"]) == (f"{RULE}:factor=0.5", 0)
    assert 1 <= record["nfe"] <= 8


def test_they_are_timed(model, capsys):
    arguments = ("--batch_sizes=2", "--repeats=1", f"--task={TASK}", f"--policy={RULE}")
    bench.main([f"--model={model}", *arguments, *SHAPE])
    assert RULE in capsys.readouterr().out


def test_the_harness_takes_the_policy(model, package, monkeypatch):
    with monkeypatch.context() as without, pytest.raises(SystemExit, match="pip install"):
        without.setitem(sys.modules, "lm_eval", None)
        harness.main([f"--model={model}", f"--policy={RULE}", "--tasks=gsm8k"])
    made = fake_harness.model_class(monkeypatch).load(
        str(model), policy=f"{RULE}:factor=0.5", gen_length=8, block_length=8, batch_size=1
    )
    assert fake_harness.ask(made, "generate_until", ("Chad: ", {}))
    assert made.sequences == 1 and 1 <= made.forwards < 8


def test_a_denoiser_is_trained_by_the_policy_and_evaluated_with_it(experiment, tmp_path):
    space: dict = {}
    exec(experiment.read_text(), space)
    config = space["get_config"]("tracerl")
    config.value.enabled = False
    config.eval.update(num_problems=2, batch_size=2, block_lengths=(8,), examples=0)
    config.eval.policies = (f"{RULE}:factor=0.5|1",)
    assert train.train(config, tmp_path / "run")
    (step,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert 1 <= json.loads(step)["nfe"] <= 8
    results = evaluate(config, tmp_path / "eval", tmp_path / "run")
    assert [(each.point.method, each.point.settings) for each in results] == [
        ("AboveMean", (("factor", 0.5),)),
        ("AboveMean", (("factor", 1.0),)),
    ]


@pytest.mark.thorough
def test_a_curriculum_of_both_recipes_trains_them_and_the_result_is_evaluated(
    experiment, model, tmp_path
):
    config = recipes.config("curriculum")
    config.stages = (f"{experiment}:tracerl", f"{experiment}:policy_grpo policy.network.width=8")
    assert train.train(config, tmp_path)

    written = tmp_path / "01-tracerl" / "model"
    assert (
        load_file(written / "model.safetensors").keys()
        == load_file(model / "model.safetensors").keys()
    )
    denoiser, _ = denoisers.from_pretrained(written)
    assert denoiser.config.family == "my_package.family.FAMILY"

    policy, params = policies.load_policy(tmp_path / "02-policy_grpo" / "policy")
    assert type(policy.network).__name__ == "Perceptron"
    assert params["network"]["Dense_0"]["kernel"].shape == (2, 8)

    space: dict = {}
    exec(experiment.read_text(), space)
    config = space["get_config"]("policy_grpo")
    config.policy.network.width = 8
    results = evaluate(config, tmp_path / "eval", tmp_path / "02-policy_grpo")
    assert {result.point.method for result in results} == {"AboveMean", "policy, alpha 1"}


@pytest.mark.thorough
def test_the_published_network_on_hidden_states_trains_like_any_other(experiment, llada, tmp_path):
    space: dict = {}
    exec(experiment.read_text(), space)
    config = space["get_config"]("policy_grpo")
    config.model.path = str(llada)
    config.policy.network = policies.network_settings("hidden", time_embed_dim=8)
    config.policy.context = "block"
    config.expert.count = 0
    assert train.train(config, tmp_path / "run")
    policy, _ = policies.load_policy(tmp_path / "run" / "policy")
    assert isinstance(policy.network, policies.HiddenNetworkConfig)
    assert policy.network.denoiser.hidden_size == 32

    config.policy.init_from = str(tmp_path / "run" / "policy")
    config.policy.network.num_blocks = 2
    with pytest.raises(ConfigError, match=r"policy.init_from.*num_blocks \(1 there, 2 here\)"):
        train.train(config, tmp_path / "more")


def test_settings_may_differ_between_rows(package):
    """As in the server; with as many rows as positions a wrong shape would go unnoticed."""
    policy, params = policies.parse_policy(RULE)
    confidence = jnp.asarray([[0.5, 0.8], [0.5, 0.8]])
    obs = types.SimpleNamespace(confidence=confidence, legal=jnp.ones((2, 2), bool))
    filled = policy({**params, "factor": jnp.asarray([0.5, 1.0])}, obs, None).fill
    assert filled.tolist() == [[True, True], [False, True]]


def test_settings_from_outside_are_converted_and_checked(package):
    policy, params = policies.parse_policy(f"{RULE}:factor=2,one_at_least=false")
    assert (policy.one_at_least, params["factor"]) == (False, 2)
    for text in (f"{RULE}:factr=2", f"{RULE}:factor=-1", f"{RULE}:one_at_least=3", f"{RULE}s"):
        with pytest.raises(ValueError, match=r"factor|one_at_least|AboveMean"):
            policies.parse_policy(text)


PACED = """
import dataclasses

import jax.numpy as jnp

from my_package.rules import AboveMean


@dataclasses.dataclass(frozen=True)
class Paced(AboveMean):
    def params(self, steps: int = 0):
        return {"steps": jnp.int32(steps)}


class PacedOverCanvas(Paced):
    alphas = (0.1, 10.0)
    of_canvas = True
"""


def test_members_that_need_not_be_there(package):
    (package / "my_package" / "paced.py").write_text(PACED)
    found = {}
    for name in ("Paced", "PacedOverCanvas"):
        text = f"my_package.paced.{name}"
        policy, params = policies.parse_policy(text)
        place = {"gen_length": 32, "block_length": 8}
        _, told = policies.adjusted(text, policy, params, {"nfe": 8}, environment=place)
        found[name] = (int(told["steps"]), alphas_of(policy))
    assert found == {"Paced": (2, ()), "PacedOverCanvas": (8, (0.1, 10.0))}


def test_a_family_is_named_by_argument_or_by_the_config(model, tmp_path):
    fields = json.loads((model / "config.json").read_text())
    assert fields.pop("jax_unmask_family") == "my_package.family.FAMILY"
    for file in model.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"config\.json: model_type='mine' is"):
        denoisers.from_pretrained(tmp_path)
    _, params = denoisers.from_pretrained(tmp_path, family="my_package.family.FAMILY")
    jax.tree.map(
        lambda x, y: (x == y).all() or pytest.fail(), params, denoisers.from_pretrained(model)[1]
    )


@pytest.fixture(scope="module")
def self_training(package, tmp_path_factory):
    """A run of two steps of a recipe from outside, and its config."""
    directory = tmp_path_factory.mktemp("sudoku")
    tiny.save_model(directory, ["1", "2", "3", "4", ".", "="])
    config = recipes.config("my_package.recipe.SelfTraining")
    config.task.update(name="sudoku", prompt_length=17, truncate_prompts=False)
    config.model.update(path=str(directory), dtype="float32", param_dtype="float32")
    config.rollout.update(gen_length=16, block_length=16, prompts_per_step=2, group_size=2)
    config.policy = "top_confidence:tokens_per_step=8"
    config.train.steps = 2
    config.checkpoint.every = 1
    config.log.tensorboard = False
    config.eval.update(num_problems=2, batch_size=2, block_lengths=(0,), examples=0)
    config.eval.policies = ("top_confidence:tokens_per_step=8",)
    workdir = tmp_path_factory.mktemp("run")
    assert train.train(config, workdir)
    return config, workdir


def test_a_recipe_trains_and_resumes(self_training, package):
    config, workdir = self_training
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    shutil.rmtree(workdir / "checkpoints" / "2")
    assert train.train(config, workdir)
    assert (workdir / "metrics.jsonl").read_text().splitlines() == lines
    assert len(lines) == 2


def test_a_recipe_needs_none_of_the_optional_members(self_training, tmp_path, monkeypatch):
    from my_package import recipe

    config, optional = (
        self_training[0].copy_and_resolve_references(),
        ("shown", "blueprint", "work"),
    )
    members = {k: v for k, v in vars(recipe.SelfTraining).items() if k not in optional}
    bare = type("Bare", (), members | {"flops": lambda self, metrics: 0.0})
    monkeypatch.setattr(recipe, "Bare", bare, raising=False)
    config.recipe, config.train.steps = "my_package.recipe.Bare", 1
    assert train.train(config, tmp_path / "run")
    assert (tmp_path / "run" / "model" / "config.json").is_file()
    named = r"config\.recipe = 'my_package.recipe.Bare'.* blueprint"  # No key of the config.
    with pytest.raises(ConfigError, match=named):
        plan.plan(config)
    config.eval.every = 1
    with pytest.raises(ConfigError, match=r"config\.eval\.every = 1"):
        train.train(config, tmp_path / "more")


def test_a_recipe_that_trains_neither_denoiser_nor_policy(self_training, tmp_path, monkeypatch):
    """It ends as others do, writes what it likes, and passes nothing on."""
    from my_package import recipe

    def finish(self, state, workdir):
        (workdir / "result.txt").write_text(str(int(state.step)))

    other = type("Other", (recipe.SelfTraining,), {"trains": (), "finish": finish})
    monkeypatch.setattr(recipe, "Other", other, raising=False)
    config = self_training[0].copy_and_resolve_references()
    config.recipe, config.train.steps = "my_package.recipe.Other", 1
    workdir = tmp_path / "run"
    assert train.train(config, workdir)
    assert (workdir / "result.txt").read_text() == "1"
    assert not (workdir / "model").exists()
    assert train.train(config, workdir)  # It is finished: another call changes nothing.
    said = train._verdict(config, workdir)
    assert any(str(workdir) in line for line in said)
    assert not any("Next" in line for line in said)
    config.eval.after_training = True
    with pytest.raises(ConfigError, match=r"config\.eval\.after_training = True"):
        train.train(config, tmp_path / "evaluated")
    assert not (tmp_path / "evaluated").exists()


def test_a_recipe_is_planned_and_its_result_evaluated(self_training, tmp_path):
    config, workdir = self_training
    found = plan.plan(config)
    assert [program.name for program in found.programs] == ["rollout", "update"]
    assert "temporaries of rollout" in found.table()
    assert "temporaries of update" in found.table()
    assert found.trained_parameters == found.denoiser_parameters
    (result,) = evaluate(config, tmp_path, workdir / "model")
    assert result.point.nfe == 2


def test_settings_of_a_recipe_are_checked(self_training):
    config, workdir = self_training
    config = config.copy_and_resolve_references()
    config.least_right = 2.0
    with pytest.raises(ConfigError, match=r"config\.least_right = 2\.0"):
        train.train(config, workdir)
    for name in ("my_package.recipe.SelfTrainin", "json.dumps", "policy_gro"):
        with pytest.raises(ConfigError, match=rf"config\.recipe = '{name}'"):
            recipes.config(name)
