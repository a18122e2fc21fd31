"""The studies of launch/ start trainings that the trainer accepts, each after what it needs."""

import ast
import pathlib
import re
import runpy

import jax
import numpy as np
import pytest
from absl import flags as flags_lib

from jax_unmask import recipes
from jax_unmask.commands import calibrate
from jax_unmask.environment.bundle import load_denoiser_config
from jax_unmask.evaluation import candidates
from jax_unmask.policies import LearnedPolicy, save_policy
from jax_unmask.recipes import curriculum, policy_grpo

ROOT = pathlib.Path(__file__).parents[2]
TASKS = ["arithmetic", "countdown", "sudoku", "word_problems"]
POLICY_STUDY = ROOT / "launch" / "policy_study.sh"


def commands(fakes, tmp_path, script: str, *arguments: str) -> list[tuple[str, dict[str, str]]]:
    """Commands that a study runs for one seed, in order: module and flags."""
    # What is trained exists afterwards, so that nothing is trained twice.
    fakes.install(
        tmp_path / "bin",
        "python",
        'for each; do case $each in --workdir=*) mkdir -p "${each#*=}/model" ;; esac; done',
    )
    process = fakes.start(
        *(script, *arguments, str(tmp_path / "runs")),
        path=tmp_path / "bin",
        environment={"SEEDS": "7"},
    )
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    found = []
    for line in fakes.calls(tmp_path / "bin"):
        option, module, *flags = line.split(" ")[1:]
        assert option == "-m"
        found.append((module, dict(flag.removeprefix("--").split("=", 1) for flag in flags)))
    return found


def config_of(flags: dict[str, str]):
    """The config that a command reads: its file, changed by its flags."""
    path, _, argument = flags.pop("config").partition(":")
    make = runpy.run_path(path)["get_config"]
    config = make(argument) if argument else make()
    config.lock()
    config.update_from_flattened_dict(
        {key.removeprefix("config."): value_of(text) for key, text in flags.items()}
    )
    return config


def value_of(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


@pytest.mark.parametrize(
    ("study", "starts", "runs"),
    [
        ("full", [], ["trace", "random", "coupled", "shrink1", "shrink4", "shrink16", "value"]),
        ("block", ["block_arithmetic"], ["trace", "random", "coupled", "value"]),
        ("scaling", ["block_arithmetic"], ["4to8"]),
        (
            "sft",
            ["early_arithmetic", "block_arithmetic"],
            [f"full-{name}" for name in ("trace", "semi_ar", "random4", "random1")]
            + [f"block-{name}" for name in ("trace", "block2", "block1")],
        ),
        (
            "long",
            ["causal_word_problems", "early_word_problems"],
            [f"long-{name}" for name in ("trace", "margin", "random4", "semi_ar", "ar")],
        ),
        ("answers", ["terse_arithmetic"], ["both", "fixed", "rl"]),
    ],
)
def test_each_training_is_valid_and_comes_after_its_start(
    fakes, tmp_path, monkeypatch, study, starts, runs
):
    monkeypatch.chdir(ROOT)
    there, seen = {"arithmetic"}, []
    for module, flags in commands(fakes, tmp_path, "tracerl_study.sh", study):
        assert module == "jax_unmask.train"
        workdir = pathlib.Path(flags.pop("workdir"))
        config = config_of(flags)
        if recipes.is_curriculum(config):
            config, *later = [stage.config for stage in curriculum.stages(config, workdir)]
            assert len({config.seed, *(each.seed for each in later)}) == 1 + len(later)
            lengths = [(each.rollout.block_length, each.learner.block_length) for each in later]
            if study == "scaling":
                assert lengths == [(4, 8), (8, None)]
                assert config.learner.block_length == 8
            else:
                whole = [(each.rollout.gen_length, None) for each in later]
                assert lengths == whole and sum(each.train.steps for each in later) == 60
        else:
            recipes.read(config)
        assert config.model.path is None or config.model.path in there
        there.add(str(workdir / "model"))
        seen.append(workdir.relative_to(tmp_path / "runs"))
    trained = [path for path in seen if path.parts[0] == f"tracerl-{study}"]
    assert [path.name for path in trained] == [f"{name}-7" for name in runs]
    assert [path.name for path in seen if path not in trained] == starts


def save_untrained(settings, directory: str) -> LearnedPolicy:
    """The policy that a training would leave; measuring reads it, and how it shall act."""
    policy = policy_grpo.build_policy(settings, load_denoiser_config(settings))
    shapes = jax.eval_shape(policy.init_params, jax.random.key(0))["network"]
    network = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    alpha = {"alpha": 1.0} if policy.alphas else {}
    save_policy(directory, policy, {"network": network, **policy.params(**alpha)})
    return policy


POLICY_STUDIES = re.findall(r"^    (\w+)\) variants=", POLICY_STUDY.read_text(), re.MULTILINE)


@pytest.mark.parametrize("study", POLICY_STUDIES)
def test_each_policy_of_a_study_is_trained_and_then_measured(fakes, tmp_path, monkeypatch, study):
    monkeypatch.chdir(ROOT)
    task = "countdown" if study == "published" else "sudoku"
    ran = commands(fakes, tmp_path, POLICY_STUDY.name, study, task)
    different = set()
    for (train, flags), (measure, flags_of_eval) in zip(ran[::2], ran[1::2], strict=True):
        assert (train, measure) == ("jax_unmask.train", "jax_unmask.eval")
        workdir = flags.pop("workdir")
        assert flags_of_eval.pop("workdir") == f"{workdir}-eval"
        settings = recipes.read(config_of(flags))
        different.add(settings)
        policy = save_untrained(settings, f"{workdir}/policy")
        found = candidates.candidates(recipes.read(config_of(flags_of_eval)))
        assert len(found) > 1 or study == "rewards"
        assert {each.policy.network for each in found} == {policy.network}
    # Acting and sampling are studied on policies of one training.
    assert len(different) == (len(ran) // 2 if study != "acting" else 1)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("all", ["all"]),
        ("alone", TASKS),
        ("left_out", [f"all-{task}" for task in TASKS]),
    ],
)
def test_universal_policies_are_trained_calibrated_and_measured_on_every_task(
    fakes, tmp_path, monkeypatch, kind, names
):
    monkeypatch.chdir(ROOT)
    trained, taught, measured, calibrated = [], [], [], []
    runs = tmp_path / "runs" / "universal"
    if kind != "alone":  # The policies that teach are there.
        settings = recipes.read(config_of({"config": "configs/universal_policy.py:sudoku"}))
        for task in TASKS:
            save_untrained(settings, f"{runs}/{task}-seed7/policy")
    for module, flags in commands(fakes, tmp_path, "universal_policy.sh", kind):
        if module == "jax_unmask.train":
            workdir = pathlib.Path(flags.pop("workdir"))
            trained.append(workdir.name.removesuffix("-seed7"))
            settings = recipes.read(config_of(flags))
            for each in getattr(settings, "each", (settings,)):
                if kind != "alone":
                    taught.append((each.task.name, each.expert.policy))
                save_untrained(each, f"{workdir}/policy")
        elif module == "jax_unmask.eval":
            measured.append(pathlib.Path(flags.pop("workdir")).name)
            found = candidates.candidates(recipes.read(config_of(flags)))
            settings = {(float(x.params["alpha"]), float(x.params["scale"])) for x in found}
            assert len(settings) == len(found) > 5
        else:
            assert module == "jax_unmask.calibrate"
            values = flags_lib.FlagValues()
            calibrate.define_flags(values)
            values(["calibrate", *(f"--{name}={value}" for name, value in flags.items())])
            calibrated.append((values.config.task.name, values.block_length))
    assert trained == names
    assert measured == [f"{name}-seed7-on-{task}" for name in names for task in TASKS]
    blocks = zip(TASKS, (8, 4, 4, 16), strict=True)
    expected = [(task, length) for task, block in blocks for length in (0, block)]
    assert calibrated == ([] if kind == "left_out" else expected)
    for task, teacher in taught:
        expected = f"learned:{runs}/{task}-seed7/policy,distribution=threshold"
        assert teacher == ("frontier_told" if task == "word_problems" else expected)
