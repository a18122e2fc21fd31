"""`python -m jax_unmask.train`: runs that are killed, runs of every kind, runs that must stop."""

import dataclasses
import json
import math
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file

from jax_unmask import denoisers, policies, recipes, tasks
from jax_unmask.commands import train
from jax_unmask.denoisers.flops import forward_flops
from jax_unmask.recipes.policy_grpo import PolicyGrpo
from jax_unmask.recipes.tracerl import TraceRl
from jax_unmask.runtime.checkpoints import CheckpointError, Checkpoints
from jax_unmask.runtime.divergence import Untrained
from jax_unmask.runtime.locks import DirectoryLock
from jax_unmask.settings import ConfigError

LONG = {"train__steps": 24, "checkpoint__every": 2, "seed": 3}
EXPORTED = {
    "policy_grpo": "policy/model.safetensors",
    "joint": "policy/model.safetensors",
    "sft": "model/model.safetensors",
    "state_sft": "model/model.safetensors",
    "tracerl": "model/model.safetensors",
}
# Own data, of which some say in which steps they were written, several examples in a row.
MUON = {"optimizer__kind": "muon"}
PACKED = {
    "task__name": "responses",
    "data__gen_length": 20,
    "data__pack_length": 64,
    "data__length_buckets": (18,),
    "learner__block_length": 2,
    "learner__method": "trace",
    "learner__num_pads": 1,
    "learner__chunk_size": 2,
}
MEASURED = {
    "reward__limit_margin": 0,
    "eval__every": 3,
    "eval__num_problems": 4,
    "eval__policies": ("threshold:threshold=0.3|0.9",),
    "eval__block_lengths": (16,),
    "eval__seeds": (0, 1),
}


def lines(workdir: pathlib.Path) -> list[dict]:
    path = workdir / "metrics.jsonl"
    # A line that is being written has no end yet.
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def last_checkpoint(config, workdir: pathlib.Path) -> list[bytes]:
    """All arrays of the last checkpoint, parameters, optimiser, step and keys, as bytes."""
    state = recipes.find(config.recipe)(recipes.read(config), workdir).init()
    with Checkpoints(workdir, read_only=True) as checkpoints:
        restored = checkpoints.restore(state.params, dataclasses.replace(state, params=None))
    assert restored is not None
    assert restored.step == config.train.steps
    # Something was learned that could have been lost.
    assert not jax.tree.all(jax.tree.map(np.array_equal, restored.params, state.params))
    leaves = jax.tree.leaves((restored.params, restored.state))
    keys = [jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves]
    return [
        np.asarray(jax.random.key_data(leaf) if is_key else leaf).tobytes()
        for leaf, is_key in zip(leaves, keys, strict=True)
    ]


class Disturbed:
    """Starts the command on a workdir again and again, and ends it before it is through."""

    def __init__(self, experiment: pathlib.Path, workdir: pathlib.Path) -> None:
        self.experiment = experiment
        self.workdir = workdir
        self.random = random.Random(0)

    def run_until_signal(self, number: signal.Signals, steps: int) -> subprocess.Popen[str]:
        """Sends the signal at a random moment after `steps` steps more than the last checkpoint."""
        before = len(lines(self.workdir))
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "jax_unmask.train"),
                *(f"--config={self.experiment}", f"--workdir={self.workdir}"),
            ],
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            stderr=subprocess.PIPE,
            text=True,
        )
        path, size = self.workdir / "metrics.jsonl", None
        while process.poll() is None:
            # Resuming cuts off the lines behind the checkpoint; count from there.
            now = len(lines(self.workdir))
            before, size = min(before, now), now
            if path.exists() and now >= before + steps:
                break
            time.sleep(0.01)
        assert process.poll() is None, f"ended after {size} steps: {process.stderr.read()}"
        time.sleep(self.random.uniform(0.0, 0.2))
        process.send_signal(number)
        return process


def own_data(path: pathlib.Path) -> str:
    """A file of Sudoku grids, every other one with the steps of its digits."""
    examples = []
    for number, example in zip(range(8), tasks.create("sudoku").source("train"), strict=False):
        task = tasks.create("sudoku")
        record = {"prompt": task.prompt(example), "response": task.target(example)}
        if number % 2:
            record["step_map"] = [(place * number) % 5 for place in range(16)]
        examples.append(json.dumps(record))
    path.write_text("\n".join(examples))
    return str(path)


@pytest.mark.parametrize(
    ("recipe", "more", "signals"),
    [
        ("policy_grpo", {}, (signal.SIGKILL, signal.SIGTERM)),
        pytest.param("sft", MUON, (signal.SIGKILL, signal.SIGINT), marks=pytest.mark.slow),
        pytest.param("tracerl", {}, (signal.SIGKILL,), marks=pytest.mark.slow),
        pytest.param("joint", {"turn": 2}, (signal.SIGKILL,), marks=pytest.mark.slow),
        pytest.param("tracerl", MEASURED, (signal.SIGKILL,), marks=pytest.mark.slow),
        pytest.param("state_sft", PACKED, (signal.SIGKILL,), marks=pytest.mark.slow),
    ],
)
@pytest.mark.thorough
def test_a_killed_run_ends_as_an_undisturbed_one(
    recipe, more, signals, tiny_config, write_experiment, tiny_model_dir, tmp_path
):
    settings = LONG | more
    if recipe == "state_sft":
        settings["model__path"] = str(tiny_model_dir)
        settings["task__path"] = own_data(tmp_path / "mine.jsonl")
    config = tiny_config(recipe, **settings)
    train.train(config, tmp_path / "undisturbed")

    experiment = write_experiment(tmp_path / "experiment.py", recipe, **settings)
    workdir = tmp_path / "disturbed"
    disturbed = Disturbed(experiment, workdir)
    for number in signals:
        process = disturbed.run_until_signal(number, steps=disturbed.random.randrange(3, 7))
        _, errors = process.communicate(timeout=300)
        ends = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 0, signal.SIGINT: 130}
        assert process.returncode == ends[number], errors
        assert 0 < len(lines(workdir)) < config.train.steps
        assert "Traceback" not in errors
        if number != signal.SIGKILL:
            assert f"Step {len(lines(workdir))} of" in errors
            with Checkpoints(workdir, read_only=True) as checkpoints:
                assert checkpoints.latest_step() == len(lines(workdir))
    train.train(config, workdir)

    expected = (tmp_path / "undisturbed" / "metrics.jsonl").read_bytes()
    assert (workdir / "metrics.jsonl").read_bytes() == expected
    assert [line["step"] for line in lines(workdir)] == list(range(1, config.train.steps + 1))
    exported = [tmp_path / run / EXPORTED[recipe] for run in ("undisturbed", "disturbed")]
    assert exported[0].read_bytes() == exported[1].read_bytes()
    assert last_checkpoint(config, workdir) == last_checkpoint(config, tmp_path / "undisturbed")


def test_a_signal_between_two_log_lines_adds_none(tiny_config, tmp_path, monkeypatch):
    config = tiny_config("sft", train__steps=5, log__every=2, model__max_length=99)
    config.model.logits_shift, config.masking.causal_fraction = True, 0.5
    train.train(config, tmp_path / "undisturbed")
    made = denoisers.from_pretrained(tmp_path / "undisturbed" / "model")[0].config
    assert made.max_length == 99  # Later canvases may be longer.
    assert made.logits_shift and made.attention_block is None

    recipe, placed = recipes.find("sft"), []
    step = recipe.step

    def step_and_signal(self, state, batch, timer):
        if state.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        placed.append([(leaf.sharding, leaf.committed) for leaf in jax.tree.leaves(state)])
        return step(self, state, batch, timer)

    monkeypatch.setattr(recipe, "step", step_and_signal)
    with pytest.raises(KeyboardInterrupt):
        train.train(config, tmp_path / "disturbed")
    assert [line["step"] for line in lines(tmp_path / "disturbed")] == [2]
    assert not (tmp_path / "disturbed" / "model").exists()
    train.train(config, tmp_path / "disturbed")
    assert [line["step"] for line in lines(tmp_path / "disturbed")] == [2, 4, 5]
    # A state that is placed in another way, fresh, trained or restored, would be compiled for anew.
    assert len(placed) == 5
    assert all(each == placed[0] for each in placed)
    for name in ("metrics.jsonl", "model/model.safetensors"):
        contents = {(tmp_path / run / name).read_bytes() for run in ("disturbed", "undisturbed")}
        assert len(contents) == 1


class TestPolicyRuns:
    METRICS = (
        *("reward", "accuracy", "nfe", "nfe_max", "useful_forwards", "unfinished"),
        *("groups_with_signal", "loss", "entropy", "grad_norm", "pairs", "skipped"),
    )

    def run(self, config, workdir):
        train.train(config, workdir)
        found = lines(workdir)
        assert [line["step"] for line in found] == [1, 2, 3]
        for line in found:
            assert set(self.METRICS) <= set(line) <= {"step", *PolicyGrpo.metrics}
            assert all(isinstance(v, int | float) and math.isfinite(v) for v in line.values())
            assert 1 <= line["nfe"] <= line["nfe_max"] <= 16
            assert 0 < line["useful_forwards"] <= 1
        policy, params = policies.load_policy(workdir / "policy")
        card = (workdir / "policy" / "README.md").read_text()
        assert f"- distribution: {policy.distribution}" in card
        assert "mean of the last 3 recorded steps" in card
        return found, policy, params

    @pytest.mark.thorough
    def test_additive_reward_and_another_run_from_its_policy(self, tiny_config, tmp_path):
        config = tiny_config(log__tensorboard=True)
        found, policy, first = self.run(config, tmp_path)
        # The denoiser is wrong all the time: what is left is the charge for the steps.
        assert all(line["accuracy"] == 0 for line in found)
        for line in found:
            assert line["reward"] == pytest.approx(-line["nfe"] / 16, abs=1e-6)
        assert sum(line["pairs"] for line in found) > 0
        assert policy.distribution == "bernoulli"
        assert list((tmp_path / "tensorboard").iterdir())
        timings = json.loads((tmp_path / "timings.jsonl").read_text().splitlines()[0])
        assert {"seconds/rollout", "seconds/reward", "seconds/update"} <= set(timings)
        assert timings["memory/host_peak"] > 0
        needed = timings["model_flops_per_second"] * timings["seconds/total"]
        denoiser = denoisers.from_pretrained(config.model.path)[0].config
        # Two prompts in groups of two, whose rows share their first forward.
        rows = found[0]["nfe"] * 4 - 2
        assert needed == pytest.approx(rows * forward_flops(denoiser, 17 + 16, 16), rel=1e-5)

        # Another run starts from the policy, and explores more.
        changed = {"policy__init_from": str(tmp_path / "policy"), "policy__temperature": 3.0}
        # What it reads beside changes nothing at first.
        config = tiny_config(**changed, policy__network__length=True, optimizer__lr=1e-30, seed=9)
        _, _, second = self.run(config, tmp_path / "second")
        inputs = second["network"]["features"]
        assert abs(inputs["kernel"][-1]).max() < 1e-20
        inputs["kernel"] = inputs["kernel"][:-1]
        assert (first.pop("temperature"), second.pop("temperature")) == (1, 3)
        assert jax.tree.all(jax.tree.map(np.array_equal, first, second))

    @pytest.mark.thorough
    def test_experts_steer_and_are_imitated_in_the_first_steps(self, tiny_config, tmp_path):
        config = tiny_config(
            model__path="sudoku",
            expert__count=1,
            expert__block_length=4,
            expert__policy="threshold:threshold=0.9",
            expert__imitation=1.0,
            expert__imitation_steps=2,
        )
        found, _, _ = self.run(config, tmp_path)
        assert all(-1 <= line["expert_reward"] <= 1 for line in found)
        imitated = [line["imitated"] for line in found]
        assert 0 < imitated[0] <= 1
        assert 0 < imitated[1] <= 1
        assert imitated[2] == 0

    @pytest.mark.thorough
    def test_dynamic_plackett_luce_on_more_observations_with_a_cache(self, tiny_config, tmp_path):
        config = tiny_config(
            policy__distribution="dpls",
            policy__network__top_k=2,
            policy__network__entropy=True,
            policy__network__hidden_size=16,
            rollout__cache="dual",
            rollout__block_length=4,
            rollout__stop_at_end=True,
            rollout__batches=2,
        )
        found, policy, _ = self.run(config, tmp_path)
        assert policy.distribution == "dpls"
        for line in found:
            assert line["unfinished"] == 0
            # Of 33 positions, 4 are computed where the cache is read.
            assert 4 / 33 < line["cost"] < line["nfe"]
        assert sum(line["pairs"] for line in found) > 0


@pytest.mark.thorough
def test_one_policy_learns_in_several_environments_for_every_alpha(tiny_config, tmp_path):
    config = tiny_config("policy_environments", train__steps=2, reward__alpha=1.0)
    first, second = config.environments
    config.environments = (first, second.replace("block_length=4", "block_length=8"))
    config.expert.update(count=1, block_length=4, imitated="all", imitation=1.0, imitation_steps=1)
    train.train(config, tmp_path)
    # Steps are those of training, each an update in every environment.
    assert [line["imitated"] for line in lines(tmp_path)] == [1, 0]
    for line in lines(tmp_path):
        assert 1 <= line["nfe/sudoku_1"] <= 8
        assert line["nfe"] == pytest.approx((line["nfe/sudoku_0"] + line["nfe/sudoku_1"]) / 2)
        assert line["nfe_at_small_alpha"] > 0
        assert {name.partition("/")[0] for name in line} <= {"step", *PolicyGrpo.metrics}
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.latest_step() == 2
    policy, params = policies.load_policy(tmp_path / "policy")
    assert policy.alphas == (0.1, 30.0)
    assert params["alpha"] == 1

    # The positions of all data are saved together.
    recipe = recipes.find("policy_environments")(recipes.read(config), tmp_path)
    data = recipe.data()
    next(data)
    state, other = data.get_state(), recipe.data()
    other.set_state(state)
    for ours, theirs in zip(next(data), next(other), strict=True):
        assert ours.examples == theirs.examples
    with pytest.raises(ValueError, match=r"1 environments.* 2"):
        other.set_state({"environments": state["environments"][:1]})


@pytest.mark.parametrize(
    "line",
    [
        "policy.context=block",
        "model.paht=sudoku",
        "rollout.block_length=3",
        "rollout.gen_length=0",
        "task.name",
    ],
)
def test_a_mistake_in_an_environment_is_named(tiny_config, tmp_path, line):
    config = tiny_config("policy_environments", environments=("task.name=sudoku", line))
    with pytest.raises(ConfigError, match=re.escape(f"environments[1] = {line!r}")):
        train.train(config, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_workdir_belongs_to_one_configuration(tiny_config, tmp_path):
    with pytest.raises(ConfigError, match=r"config\.model\.path = ./no/such/model"):
        train.train(tiny_config("sft", model__path="/no/such/model"), tmp_path)
    train.train(tiny_config("sft"), tmp_path)  # The run that could not start did not claim it.
    written = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="another configuration") as error:
        train.train(tiny_config("sft", optimizer__lr=0.5, seed=4), tmp_path)
    assert "optimizer.lr (0.002 there, 0.5 here), seed (0 there, 4 here)" in str(error.value)
    # Settings of log, evaluation and checkpoints are exempt.
    train.train(
        tiny_config("sft", log__every=2, eval__num_problems=5, checkpoint__every=1), tmp_path
    )
    assert (tmp_path / "metrics.jsonl").read_bytes() == written


def test_a_workdir_belongs_to_one_run(tiny_config, tmp_path):
    with DirectoryLock(tmp_path, train.LOCK) as lock:
        lock.take()
        named = f"process {os.getpid()} on {socket.gethostname()} is writing there"
        with pytest.raises(ConfigError, match=named):
            train.train(tiny_config("sft"), tmp_path)
    train.train(tiny_config("sft"), tmp_path)  # It was given back.


@pytest.fixture
def with_step(monkeypatch):
    """Changes what a step of SFT returns: with_step(lambda step, state, metrics: ...)."""

    def install(change):
        recipe = recipes.find("sft")
        step = recipe.step

        def changed(self, state, batch, timer):
            state, metrics = step(self, state, batch, timer)
            return change(int(state.step), state, metrics)

        monkeypatch.setattr(recipe, "step", changed)

    return install


class TestDivergence:
    """Numbers that are lost between two looks at them, in metrics or in what is trained."""

    @pytest.mark.parametrize("lost", ["loss", "params", "opt_state"])
    def test_ends_the_run_and_names_the_last_good_checkpoint(
        self, tiny_config, tmp_path, with_step, lost
    ):
        def lose(step, state, metrics):
            if step == 3 and lost == "loss":
                metrics = metrics | {"loss": np.float32(np.nan)}
            elif step >= 3 and lost != "loss":
                broken = jax.tree.map(lambda leaf: leaf / 0, getattr(state, lost))
                state = dataclasses.replace(state, **{lost: broken})
            return state, metrics

        with_step(lose)
        config = tiny_config("sft", train__steps=9, checkpoint__every=2, log__every=4)
        named = r"step 4: training diverged at step 3; .* /.*/checkpoints/2 is from before"
        with pytest.raises(FloatingPointError, match=named):
            train.train(config, tmp_path)
        assert [line["step"] for line in lines(tmp_path)] == [4]
        assert not (tmp_path / "model").exists()
        with Checkpoints(tmp_path, read_only=True) as checkpoints:
            assert checkpoints.steps() == [2]


def test_metrics_that_a_checkpoint_does_not_find(tiny_config, tmp_path, caplog):
    config = tiny_config("sft", train__steps=3, checkpoint__every=1)
    train.train(config, tmp_path)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[1:]))
    with pytest.raises(ValueError, match=r"metrics.jsonl has 2 lines .* up to 3, but 3 were"):
        train.train(config, tmp_path)
    path.unlink()
    train.train(config, tmp_path)
    assert "metrics.jsonl is gone" in caplog.text


def test_a_workdir_that_is_deleted_while_it_is_used(tiny_config, tmp_path, with_step):
    workdir = tmp_path / "run"

    def delete(step, state, metrics):
        if step == 2:
            shutil.rmtree(workdir)
        return state, metrics

    with_step(delete)
    with pytest.raises(OSError, match=f"{workdir} was deleted"):
        train.train(tiny_config("sft"), workdir)


def test_damaged_checkpoints_are_never_passed_over(tiny_config, tmp_path):
    config = tiny_config("sft", train__steps=2, checkpoint__every=1)
    train.train(config, tmp_path)
    for path in tmp_path.glob("checkpoints/*/params/**/*"):
        if path.is_file():
            path.write_bytes(b"")
    for _ in range(2):  # The first start moves them aside.
        with pytest.raises(CheckpointError, match=rf"{tmp_path} .*\[1, 2\]"):
            train.train(config, tmp_path)
    assert len(lines(tmp_path)) == 2


def test_ranks_checkpoints_by_known_metrics_only(tiny_config, tmp_path):
    config = tiny_config("sft", checkpoint__best_metric="acuracy")
    with pytest.raises(ConfigError, match=r"'acuracy': .*Choose one of .*masked_accuracy"):
        train.train(config, tmp_path)
    assert not list(tmp_path.iterdir())  # Before anything was done.


@pytest.mark.thorough
class TestTraceRuns:
    def run(self, config, workdir):
        train.train(config, workdir)
        found = lines(workdir)
        assert len(found) == config.train.steps
        for line in found:
            assert all(isinstance(v, int | float) and math.isfinite(v) for v in line.values())
            assert 1 <= line["nfe"] <= 16
            assert set(line) <= {"step", *TraceRl.metrics}
            assert line["accuracy"] == 0
            assert 0 < line["tokens_per_step"] <= 16
            assert 0 < line["useful_forwards"] <= 1
        return found

    def test_fills_the_batch_from_further_rounds(self, tiny_config, tmp_path):
        # In some of the groups both responses need as many steps, and earn the same.
        config = tiny_config(
            "tracerl",
            rollout__prompts_per_step=16,
            rollout__policy="threshold:threshold=0.4",
            rollout__slots=8,
            filter__rounds=6,
            learner__reference_beta=0.1,
        )
        found = self.run(config, tmp_path / "one")
        assert any(line["rounds"] > 1 for line in found)
        assert all(line["groups_kept"] == 1 or line["rounds"] == 6 for line in found)
        assert all({"value_loss", "kl", "trained_tokens", "states"} <= set(line) for line in found)
        assert any(line["skipped"] == 0 and line["grad_norm"] > 0 for line in found)
        _, params = denoisers.from_pretrained(tmp_path / "one" / "model")
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))

        # Batches that are rolled out one after the other change nothing but how slots are used.
        config.rollout.batches = 2
        train.train(config, tmp_path / "two")
        assert lines(tmp_path / "two") == [
            line | {"useful_forwards": other["useful_forwards"]}
            for line, other in zip(found, lines(tmp_path / "two"), strict=True)
        ]
        weights = [tmp_path / name / EXPORTED["tracerl"] for name in ("one", "two")]
        assert weights[0].read_bytes() == weights[1].read_bytes()

    def test_adapters_are_trained_and_exported_merged(self, tiny_config, tiny_model_dir, tmp_path):
        config = tiny_config(
            "tracerl",
            rollout__policy="threshold:threshold=0.4",
            rollout__prompts_per_step=8,
            learner__surrogate="coupled",
            value__enabled=False,
            lora__rank=2,
            lora__targets=("query", "up"),
            optimizer__lr=0.1,
        )
        found = self.run(config, tmp_path)
        assert any(line["skipped"] == 0 and line["grad_norm"] > 0 for line in found)
        before = flatten_dict(denoisers.from_pretrained(tiny_model_dir)[1])
        after = flatten_dict(denoisers.from_pretrained(tmp_path / "model")[1])
        changed = {path[-2] for path in before if not np.array_equal(before[path], after[path])}
        assert changed == {"query", "up"}

    def test_steps_are_rewarded_one_by_one(self, tiny_config, tmp_path):
        # The shipped denoiser, hot and hasty enough for wrong steps.
        config = tiny_config(
            "tracerl",
            task__name="arithmetic",
            model__path="arithmetic",
            rollout__gen_length=32,
            rollout__block_length=32,
            rollout__temperature=1.5,
            process__judge="steps",
            process__chunk_length=8,
            train__steps=1,
            learner__shrink=16,
        )
        train.train(config, tmp_path)
        (line,) = lines(tmp_path)
        assert -1 < line["process_score"] < 1
        assert line["return_deviation"] > 0
        assert line["skipped"] == 0
        assert "seconds/process" in json.loads((tmp_path / "timings.jsonl").read_text())

    def test_nothing_to_learn_and_prompts_over_their_budget(self, tiny_config, tmp_path):
        # No prompt fits. No answer is right, so no group lies between the bounds; where only right
        # answers earn, all earn the same; and prompts that may not be cut are left out.
        reasons = {
            "bounds": {"filter__low": 0.2},
            "rewards": {"reward__kind": "multiplicative"},
            "budget": {
                "task__truncate_prompts": False,
                "rollout__policy": "threshold:threshold=0.4",
            },
        }
        for name, changes in reasons.items():
            settings = {"task__prompt_length": 16, "filter__rounds": 2, "train__steps": 3}
            config = tiny_config("tracerl", **settings, **changes)
            for _ in range(2):  # The same when it is started again.
                with pytest.raises(Untrained, match=r" 3 steps.*filter\.low"):
                    train.train(config, tmp_path / name)
            assert not (tmp_path / name / "model").exists()
            for line in lines(tmp_path / name):
                assert line["groups_kept"] == 0
                assert line["skipped"] == 1
                assert line["states"] == line["grad_norm"] == line["value_grad_norm"] == 0
                assert line["rounds"] == 2
                assert line["prompts_over_budget"] == 1
                assert 0 < line["without_end"] <= 1
                assert line["groups_alike"] == 1 if name == "rewards" else line["groups_alike"] < 1

    def test_block_attention_learns_longer_blocks(self, tiny_config, tiny_model_dir, tmp_path):
        # The same small vocabulary for a block-causal denoiser: rollout in blocks of 4, training
        # in blocks of 8, behind prompts of 17 tokens.
        full, _ = denoisers.from_pretrained(tiny_model_dir)
        config = dataclasses.replace(full.config, family="sdar", qk_norm=True, attention_block=4)
        denoiser = denoisers.Denoiser(config)
        params = denoisers.init_params(config, jax.random.key(1))
        tokenizer = denoisers.load_tokenizer(tiny_model_dir)
        denoisers.save_pretrained(tmp_path / "blocks", denoiser, params, tokenizer)
        config = tiny_config(
            "tracerl",
            model__path=str(tmp_path / "blocks"),
            rollout__block_length=4,
            rollout__stop_at_end=True,
            learner__block_length=8,
            learner__shrink=1,
        )
        found = self.run(config, tmp_path / "run")
        assert any(line["skipped"] == 0 and line["grad_norm"] > 0 for line in found)
        # At most eight states hold all steps of a response.
        assert all(line["states"] <= 8 * 4 for line in found)
        trained, _ = denoisers.from_pretrained(tmp_path / "run" / "model")
        assert trained.config.attention_block == 8


@pytest.mark.thorough
def test_supervised_training_in_states(tiny_config, tmp_path):
    config = tiny_config(
        "state_sft",
        model__attention_block=4,
        learner__method="block",
        learner__block_length=4,
        train__steps=6,
        log__every=1,
        optimizer__lr=1e-2,
    )
    train.train(config, tmp_path)
    found = lines(tmp_path)
    assert found[-1]["loss"] < found[0]["loss"]
    assert all(line["trained_tokens"] > 0 for line in found)
    assert {"step", *recipes.find("state_sft").metrics} == set(found[0])
    trained, _ = denoisers.from_pretrained(tmp_path / "model")
    assert trained.config.attention_block == 4


@pytest.mark.thorough
def test_supervised_training_on_shorter_canvases(tiny_config, tmp_path):
    # With block attention, padding behind the end changes nothing of what comes before.
    found, weights = [], []
    for name, buckets in (("whole", ()), ("cut", (12, 20, 28)), ("packed", ())):
        config = tiny_config(
            "state_sft",
            task__name="arithmetic",
            model__attention_block=4,
            model__remat=True,
            data__gen_length=32,
            data__length_buckets=buckets,
            data__pack_length=64 if name == "packed" else 0,
            task__prompt_buckets=(12,) if buckets else (),
            learner__method="trace",
            learner__block_length=4,
            learner__num_pads=1,
            learner__normaliser="length",
            optimizer__lr=1e-3,
            train__steps=2,
        )
        train.train(config, tmp_path / name)
        found.append(lines(tmp_path / name))
        weights.append(load_file(tmp_path / name / "model" / "model.safetensors"))
    whole, cut, packed = found
    assert [line["canvas_length"] for line in whole] == [32, 32]
    assert all(line["canvas_length"] in (20, 28) for line in cut), cut
    for one, *others in zip(whole, cut, packed, strict=True):
        for other in others:
            assert other["trained_tokens"] == one["trained_tokens"]
            assert other["states"] == one["states"]
            assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
            assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
        assert others[1]["forwards"] < one["forwards"] == one["states"]
        assert others[1]["filled"] > one["filled"]
    for name, value in weights[0].items():
        for other in weights[1:]:
            np.testing.assert_allclose(other[name], value, atol=2e-5)


@pytest.mark.thorough
def test_a_denoiser_is_measured_while_it_is_trained(tiny_config, tmp_path, caplog):
    """Its accuracy in the metrics is that of an evaluation of the model that it is then."""
    config = tiny_config(
        "sft",
        train__steps=3,
        log__every=2,
        eval__every=3,
        eval__after_training=True,
        eval__num_problems=4,
        eval__policies=("threshold:threshold=0.3",),
        eval__block_lengths=(16,),
        eval__examples=0,
    )
    train.train(config, tmp_path)
    *others, last = lines(tmp_path)
    assert not any(name.startswith("eval_") for line in others for name in line)
    (row,) = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert last["eval_nfe"] == pytest.approx(row["nfe_mean"])
    assert last["eval_accuracy"] == pytest.approx(row["accuracy"])


@pytest.mark.parametrize(
    ("recipe", "changes", "named"),
    [
        ("policy_grpo", {"eval__every": 2}, r"config.eval.every = 2: .*trains no denoiser"),
        (
            "sft",
            {"eval__every": 2, "eval__axes": ("seed=1|2",)},
            r"config\.eval\.axes = .*, not seed",
        ),
        (
            "tracerl",
            {"eval__every": 2, "eval__axes": ("rollout.gen_length=16|24",)},
            r"config\.(eval\.block_lengths|rollout\.block_length) = ",
        ),
    ],
)
def test_what_cannot_be_measured_while_training(tiny_config, tmp_path, recipe, changes, named):
    with pytest.raises(ConfigError, match=named):
        train.train(tiny_config(recipe, eval__block_lengths=(16,), **changes), tmp_path)
    assert not (tmp_path / "config.json").exists(), "it had begun"
