"""Stages run in order, each from the one before it; a killed curriculum goes on where it was."""

import pathlib
import shlex
import shutil

import jax
import pytest

import tiny
from jax_unmask import recipes
from jax_unmask.commands import calibrate, checks, convert, plan, train
from jax_unmask.commands import eval as evaluation
from jax_unmask.recipes import curriculum
from jax_unmask.runtime.locks import DirectoryLock
from jax_unmask.runtime.placement import Placement
from jax_unmask.settings import ConfigError

NETWORK_OF_JOINT = f"'policy.network.alphas={tiny.SETTINGS['joint']['policy.network.alphas']}'"


def config_of(*stages):
    config = recipes.config("curriculum")
    config.stages = stages
    return config


@pytest.fixture
def files(write_experiment, tmp_path):
    """Experiment files of one step each, one per recipe."""
    paths = {}
    for recipe in ("sft", "tracerl", "policy_grpo", "policy_environments", "joint"):
        path = tmp_path / f"{recipe}.py"
        extra = {"value__enabled": False} if recipe == "tracerl" else {}
        write_experiment(path, recipe, train__steps=1, optimizer__warmup_steps=0, **extra)
        paths[recipe] = str(path)
    return paths


def test_each_stage_starts_from_the_one_before_it(files, tmp_path):
    workdir = tmp_path / "run"
    found = curriculum.stages(
        config_of(
            f"{files['sft']} optimizer.lr=0.01",
            f"{files['tracerl']} learner.shrink=2",
            f"{files['policy_grpo']} rollout.block_length=8",
        ),
        workdir,
    )
    assert [stage.name for stage in found] == ["01-sft", "02-tracerl", "03-policy_grpo"]
    assert found[1].config.model.path == str(workdir / "01-sft" / "model")
    assert found[2].config.model.path == str(workdir / "02-tracerl" / "model")
    assert found[2].config.policy.init_from is None
    assert found[2].config.rollout.block_length == 8


def test_all_that_a_stage_trains_is_passed_on(files, tmp_path):
    workdir, elsewhere = tmp_path / "run", str(tmp_path / "elsewhere")
    joint, tracerl = files["joint"], files["tracerl"]
    policy = f"{files['policy_grpo']} {NETWORK_OF_JOINT}"
    config = config_of(joint, f"{joint} export={elsewhere}", tracerl, policy)
    joint, tracerl, policy = (each.config for each in curriculum.stages(config, workdir)[1:])
    assert joint.model.path == str(workdir / "01-joint" / "model")
    assert joint.policy.init_from == str(workdir / "01-joint" / "policy")
    assert tracerl.model.path == elsewhere
    assert policy.model.path == str(workdir / "03-tracerl" / "model")
    assert policy.policy.init_from == str(workdir / "02-joint" / "policy")


def checked(config, workdir):
    found = curriculum.stages(config, workdir)
    curriculum.check_stages(config, found, workdir, checks.check_training)
    return found


MEASURED = "eval.block_lengths=(0,) eval.shipped=()"


def test_a_stage_may_evaluate_what_an_earlier_one_trains(files, tmp_path):
    there = f"learned:{tmp_path}/01-policy_grpo/policy"
    last = f"{files['policy_grpo']} eval.after_training=True {MEASURED}"
    last = f"{last} 'eval.policies=(\"{there}\",)'"
    assert checked(config_of(files["policy_grpo"], last), tmp_path)
    for wrong in ("02-policy_grpo/policy", "01-policy/policy"):  # Of this stage, of none.
        bad = last.replace("01-policy_grpo/policy", wrong)
        with pytest.raises(ConfigError, match=rf"stages\[1\].*{wrong}"):
            checked(config_of(files["policy_grpo"], bad), tmp_path)


@pytest.mark.parametrize("written", ["{path}", "./{path}", "{here}/{path}"])
def test_what_an_earlier_stage_writes_is_known_however_its_path_is_written(
    files, tmp_path, monkeypatch, written
):
    monkeypatch.chdir(tmp_path)
    model, policy = (
        written.format(path=f"run/{name}", here=tmp_path)
        for name in ("01-sft/model", "02-policy_grpo/policy")
    )
    lines = (
        f"model.path={model} rollout.block_length=16 expert.count=1 expert.block_length=16 "
        f"expert.policy=learned:{policy},distribution=threshold",
        f"model.path={model}",
    )
    ranked = f"{files['policy_environments']} model.path={model} checkpoint.best_metric=reward"
    last = f"{ranked} {shlex.quote(f'environments={lines!r}')}"
    stages = files["sft"], f"{files['policy_grpo']} policy.init_from=None", last
    assert checked(config_of(*stages), pathlib.Path("run"))


def test_checkpoints_are_ranked_by_what_is_measured_on_the_way(files, tmp_path):
    ranked = f"{files['sft']} checkpoint.best_metric=eval_accuracy"
    assert checked(config_of(f"{ranked} eval.every=1 {MEASURED}"), tmp_path)
    with pytest.raises(ConfigError, match=r"stages\[0\].*checkpoint\.best_metric"):
        checked(config_of(ranked), tmp_path)


def test_a_policy_goes_on_with_the_same_network_or_begins_anew(files, tmp_path):
    same = f"{files['policy_grpo']} {NETWORK_OF_JOINT}"
    change = f"{same} policy.network.hidden_dim=16"
    message = r"stages\[2\].*policy\.init_from.*hidden_dim \(8 there, 16 here\)"
    with pytest.raises(ConfigError, match=message):
        checked(config_of(files["joint"], files["sft"], change), tmp_path)
    for last in (
        f"{change} policy.init_from=None",
        f"{same} policy.network.initial_bias=-1.5",
        f"{same} policy.network.entropy=True",
    ):
        assert checked(config_of(files["joint"], last), tmp_path)


def test_an_interrupted_stage_is_gone_on_with_and_finished_ones_are_not_repeated(files, tmp_path):
    config = config_of(files["sft"], files["sft"], files["sft"])
    trained, interrupted = [], iter([True, False, True, True])

    def stub(stage, workdir):
        trained.append((workdir.name, stage.model.path))
        tiny.save_model(workdir / "model", ["1", "2", "3", "4", ".", "="])
        return next(interrupted)

    workdir = tmp_path / "run"
    with DirectoryLock(workdir, "run.lock") as lock:
        assert not curriculum.run(config, workdir, stub, checks.check_training, lock)
        assert curriculum.run(config, workdir, stub, checks.check_training, lock)
    names = [name for name, _ in trained]
    assert names == ["01-sft", "02-sft", "02-sft", "03-sft"]
    assert trained[-1][1] == str(workdir / "02-sft" / "model")


@pytest.mark.parametrize("process", [0, 1])
def test_the_first_process_says_that_a_stage_is_finished_and_all_wait_for_it(
    files, tmp_path, monkeypatch, process
):
    # A process that went on before could skip, or load, what is half written.
    marker = tmp_path / "run" / "01-sft" / "finished"
    there_at_meeting = []
    monkeypatch.setattr(jax, "process_index", lambda: process)

    def meet(self, name):
        if name == "01-sft":
            there_at_meeting.append(marker.is_file())

    monkeypatch.setattr(Placement, "meet", meet)
    lock = DirectoryLock(tmp_path / "run", "run.lock")
    assert curriculum.run(
        config_of(files["sft"]), tmp_path / "run", lambda *_: True, checks.check_training, lock
    )
    lock.close()
    assert there_at_meeting == [process == 0]


def test_a_stage_may_say_where_it_starts(files, tmp_path):
    config = config_of(files["policy_grpo"], f"{files['policy_grpo']} policy.init_from=elsewhere")
    first, second = curriculum.stages(config, tmp_path)
    assert first.config.policy.init_from is None
    assert second.config.policy.init_from == "elsewhere"


def test_policies_and_denoisers_of_earlier_stages_need_not_be_there(files, tmp_path):
    policy, model = tmp_path / "01-policy_grpo" / "policy", tmp_path / "02-sft" / "model"
    environments = f"environments=('model.path={model}', 'model.path={model} expert.count=0')"
    config = config_of(
        f"{files['policy_grpo']} {NETWORK_OF_JOINT}",
        files["sft"],
        f"{files['tracerl']} rollout.policy=learned:{policy}",
        f'{files["policy_environments"]} policy.init_from={policy} "{environments}"',
    )
    assert len(checked(config, tmp_path)) == 4
    config.stages = (*config.stages[1:3], config.stages[0])
    with pytest.raises(ConfigError, match=r"stages\[1\].*config\.rollout\.policy"):
        checked(config, tmp_path)


def test_a_stage_does_not_begin_in_the_directory_of_another_run(files, tmp_path):
    (tmp_path / "02-sft").mkdir()
    (tmp_path / "02-sft" / "config.json").write_text('{"recipe": "sft"}')
    with pytest.raises(ConfigError, match=r"stages\[1\].*--workdir"):
        checked(config_of(files["sft"], files["sft"]), tmp_path)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("", "config.stages[1] = ''"),
        ("{sft} task.name=gsm8k task.path=/no/such", "config.task.path = '/no/such'"),
        ("{tracerl} model.path=/no/such", "config.model.path = '/no/such'"),
        ("{policy_grpo} policy.init_from=/no/such", "config.policy.init_from = '/no/such'"),
        ("{tracerl} rollout.gen_length=512", "config.task.prompt_length = 17"),
        ("{tracerl} lora.rank=1 \"lora.targets=('nix',)\"", "config.lora.targets = ('nix',)"),
        ("{sft} data.gen_length=4", "config.data.gen_length = 4"),
        ("{sft} task.prompt_length=4", "config.task.prompt_length = 4"),
        ("{tracerl} task.name=countdown", "01-sft"),  # Whose vocabulary lacks a comma.
        ("no/such.py", "no/such.py"),
        ("{sft} train.steps", "'train.steps' is not"),
        ("{sft} train.stepps=3", "stepps"),
        ("{sft} train.steps=many", "many"),
        ("{tracerl} learner.kl=k4", "config.learner.kl = 'k4'"),
        ("{sft} task.name=sudoko", "sudoku"),
        ("{sft} checkpoint.best_metric=nix", "config.checkpoint.best_metric = 'nix'"),
        ("{policy_grpo} eval.every=3 eval.block_lengths=(16,)", "config.eval.every = 3"),
        ("{sft} eval.every=3 eval.block_lengths=(16,) \"eval.axes=('seed=1|2',)\"", "eval.axes = "),
        ("{sft} eval.after_training=True eval.block_lengths=(5,)", "config.eval.block_lengths = "),
    ],
)
def test_bad_stages_are_named_before_anything_runs(files, tmp_path, stage, message):
    stage = stage.format(**files)
    workdir = tmp_path / "run"
    with pytest.raises(ConfigError) as error:
        train.train(config_of(files["sft"], stage), workdir)
    assert "config.stages[1]" in str(error.value)
    assert message in str(error.value)
    assert not workdir.exists()


@pytest.mark.parametrize("format", ["hf", "orbax"])
@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
def test_weights_that_no_stage_writes_are_looked_at_before_anything_runs(
    files, tmp_path, tiny_model_dir, format, damage
):
    model, workdir = tmp_path / "model", tmp_path / "run"
    if format == "hf":
        shutil.copytree(tiny_model_dir, model)
    else:
        convert.convert(str(tiny_model_dir), model)
    stage = f"{files['tracerl']} model.path={model}"
    assert checked(config_of(files["sft"], stage), workdir)
    if damage == "other":
        file = model / "config.json"
        file.write_text(file.read_text().replace('"n_layers": 1', '"n_layers": 2'))
    elif format == "orbax":
        shutil.rmtree(model / "params") if damage == "missing" else None
        (model / "params" / "_METADATA").write_text("{") if damage == "cut" else None
    else:
        weights = model / "model.safetensors"
        content = weights.read_bytes()
        weights.unlink() if damage == "missing" else weights.write_bytes(content[:-8])
    with pytest.raises(ConfigError) as error:
        train.train(config_of(files["sft"], stage), workdir)
    assert "config.stages[1]" in str(error.value)
    assert f"config.model.path = {str(model)!r}" in str(error.value)
    assert not workdir.exists()


def test_no_stages(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.stages = \(\)"):
        train.train(config_of(), pathlib.Path(tmp_path))


BY_PATH = "jax_unmask.recipes.curriculum.Curriculum"


@pytest.mark.parametrize("name", ["curriculum", BY_PATH])
def test_a_curriculum_by_its_name_and_by_its_import_path(files, tmp_path, name):
    config = recipes.config(name)
    config.stages = (files["sft"], files["sft"] + " train.stepps=3")
    with pytest.raises(ConfigError, match=r"config\.stages\[1\]"):
        train.train(config, tmp_path)
    inner = tmp_path / "inner.py"
    inner.write_text(
        f"from jax_unmask import recipes\nget_config = lambda: recipes.config({name!r})"
    )
    with pytest.raises(ConfigError, match=r"config\.stages\[0\].*inner.py"):
        curriculum.stages(config_of(str(inner)), tmp_path)


def test_a_stage_that_names_no_recipe(tmp_path):
    path = tmp_path / "empty.py"
    path.write_text("from ml_collections import ConfigDict as get_config")
    with pytest.raises(ConfigError, match=r"config\.stages\[0\].*config\.recipe = None"):
        curriculum.stages(config_of(str(path)), tmp_path)


@pytest.mark.parametrize(
    "command",
    [
        plan.plan,
        lambda config: evaluation.evaluate(config, pathlib.Path("unused")),
        lambda config: evaluation.list_measurements(config, speed=None, nfe=None),
        lambda config: calibrate.calibrate(config, "universal"),
    ],
    ids=["plan", "eval", "eval --dry_run", "calibrate"],
)
def test_commands_for_one_training_say_so(files, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        command(config_of(files["sft"]))
    assert (error.value.key, error.value.value) == ("recipe", "curriculum")
    assert "config.stages" in str(error.value)
