"""`python -m jax_unmask.eval`."""

import json
import sys

import jax
import jax.numpy as jnp
import pytest
from absl import flags

import tiny
from jax_unmask import policies, recipes
from jax_unmask.commands import eval as eval_command
from jax_unmask.evaluation import axes, dry_run
from jax_unmask.policies.checkpoint import made_for
from jax_unmask.recipes.policy_grpo import build_policy
from jax_unmask.runtime.checkpoints import CheckpointError, Checkpoints, CheckpointSettings
from jax_unmask.runtime.config import config_json
from jax_unmask.settings import ConfigError, FlagError, flat


@pytest.fixture
def config(tiny_config):
    return tiny_config(
        eval__num_problems=4,
        eval__batch_size=4,
        eval__block_lengths=(16,),
        eval__policies=("threshold:threshold=0.5|0.9",),
    )


def save_policy(config, directory, step=0):
    policy = build_policy(recipes.read(config), tiny.denoiser_config())
    policies.save_policy(directory, policy, policy.init_params(jax.random.key(step)))
    return directory


def save_checkpoints(config, workdir, rewards):
    policy = build_policy(recipes.read(config), tiny.denoiser_config())
    with Checkpoints(workdir, CheckpointSettings(best_metric="reward")) as checkpoints:
        for step, reward in enumerate(rewards, start=1):
            params = policy.init_params(jax.random.key(step))
            state = {"step": jnp.asarray(step)}
            checkpoints.save(step, params=params, state=state, metrics={"reward": reward})


def test_as_a_command(write_experiment, tmp_path, monkeypatch):
    path, called = write_experiment(tmp_path / "experiment.py"), []
    values = flags.FlagValues()
    eval_command.define_flags(values)
    argv = ["eval", f"--config={path}", f"--workdir={tmp_path}", "--checkpoint=relative"]
    argv.append("--config.eval.num_problems=3")
    monkeypatch.setattr(sys, "argv", argv)
    values(argv)
    monkeypatch.setattr(flags, "FLAGS", values)
    monkeypatch.setattr(eval_command, "evaluate", lambda *arguments: called.append(arguments))
    eval_command.main(argv[:1])
    ((config, workdir, checkpoint),) = called
    assert (config.eval.num_problems, workdir, checkpoint.name) == (3, tmp_path, "relative")


class TestPolicyDirectory:
    def test_a_policy_directory_is_taken_as_it_is(self, config, tmp_path):
        directory = save_policy(config, tmp_path / "policy")
        assert eval_command.policy_directory(recipes.read(config), directory, tmp_path) == directory

    @pytest.mark.parametrize(
        ("metric", "place", "step"),
        [("", "", 3), ("reward", "", 1), ("reward", "checkpoints/2", 2)],
    )
    def test_exports_a_training_checkpoint(self, config, tmp_path, metric, place, step):
        run = tmp_path / "run"
        save_checkpoints(config, run, [0.9, 0.1, 0.2])
        config.checkpoint.best_metric = metric
        settings = recipes.read(config)
        directory = eval_command.policy_directory(settings, run / place, tmp_path / "out")
        policy, params = policies.load_policy(directory)
        assert policy == build_policy(settings, tiny.denoiser_config())
        expected = policy.init_params(jax.random.key(step))
        assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), params, expected))

    def test_its_files_say_what_it_was_trained_with(self, config, tmp_path):
        run = tmp_path / "run"
        config.expert.update(count=1, block_length=8)
        save_checkpoints(config, run, [0.5])
        (run / "config.json").write_text(config_json(config))
        config.rollout.update(gen_length=20, block_length=5)
        ((settings, _),) = eval_command._varied(config)
        directory = eval_command.policy_directory(settings, run, tmp_path / "out")
        (place,) = made_for(directory)
        assert (place.gen_length, place.block_length) == (16, 16)
        assert "1 experts" in (directory / "README.md").read_text()

    def test_is_named_after_its_own_run(self, config, tmp_path):
        directory = save_policy(config, tmp_path / "run" / "policy")
        record = {"reward.alpha": 7.0, "seed": 4, "model.path": "elsewhere"}
        (tmp_path / "run" / "config.json").write_text(json.dumps(record))
        config.eval.update(num_problems=2, examples=0, policies=())
        (found,) = eval_command.evaluate(config, tmp_path / "out", directory)
        assert found.point.method == "policy, alpha 7"
        assert config.seed == 0

    def test_of_a_recipe_that_builds_no_policy(self, config, tmp_path, monkeypatch):
        save_checkpoints(config, tmp_path / "run", [0.5])
        monkeypatch.delattr(recipes.find("policy_grpo"), "build_policy")
        with pytest.raises(ValueError, match=r"'policy_grpo' has no `build_policy`.*exported"):
            eval_command.policy_directory(recipes.read(config), tmp_path / "run", tmp_path)

    def test_says_what_is_wrong(self, config, tmp_path):
        missing = tmp_path / "missing"
        with pytest.raises(FlagError, match=f"--checkpoint = '{missing}'"):
            eval_command.evaluate(config, tmp_path / "results", missing)
        with pytest.raises(CheckpointError, match=f"{tmp_path} .*'checkpoints'"):
            eval_command.policy_directory(recipes.read(config), tmp_path, tmp_path)
        save_checkpoints(config, tmp_path / "run", [0.5])
        config.policy.network.hidden_dim = 16
        with pytest.raises(CheckpointError, match="shape"):
            eval_command.policy_directory(recipes.read(config), tmp_path / "run", tmp_path)


def test_validates_before_the_model_is_loaded(config, tmp_path):
    config.model.path = "/no/such/model"
    config.eval.policies = ("nonsense",)
    with pytest.raises(ConfigError, match="nonsense"):
        eval_command.evaluate(config, tmp_path)


def test_a_dry_run_lists_what_would_be_measured(config, capsys):
    config.model.path = "/no/such/model"
    config.rollout.gen_length = 32
    config.eval.update(block_lengths=(8,), seeds=(0, 1), num_problems=10, caches=("none", "dual"))
    config.eval.policies = ("random:tokens_per_step=3", "low_confidence:steps=8|16", "threshold")
    config.eval.axes = ("rollout.gen_length=16|32",)
    varied = eval_command._varied(config)
    found = {(row.gen_length, row.method): row for row in dry_run.planned(varied, nfe=5)}
    assert [(row.rows, row.problems) for row in found.values()] == 2 * [(4, 40), (4, 40), (2, 20)]
    # Three steps a block; as many as the canvas gets; assumed.
    assert [row.forwards / row.problems for row in found.values()] == [6, 12, 5, 12, 12, 5]
    assert found[16, "low_confidence"].settings == 2
    text = eval_command.list_measurements(config, speed=100, nfe=5)
    assert "20 rows, 200 generations, 1,880 row forwards: 0.01 hours at 100" in text
    assert "* assumed" in text


def test_settings_of_training_alone_are_no_obstacle(config, tmp_path):
    config.update_from_flattened_dict({"expert.count": 1, "expert.block_length": 5})
    config.update_from_flattened_dict({"optimizer.warmup_steps": 9, "rollout.block_length": 5})
    config.model.path = "/no/such/model"
    with pytest.raises(ConfigError, match=r"config\.model\.path = ./no/such/model"):
        eval_command.evaluate(config, tmp_path)
    assert config.expert.count == 1


TRAINED = [
    ("joint", {"train__steps": 2000, "turn": 1500}, {}),
    (
        "joint",
        {"train__steps": 20_000, "denoiser__optimizer__warmup_steps": 8000}
        | {"denoiser__optimizer__schedule": "cosine"},
        {},
    ),
    ("joint", {"denoiser__lora__rank": 2, "model__param_dtype": "bfloat16"}, {}),
    ("joint", {"expert__count": 1, "expert__block_length": 8}, {"rollout.gen_length": 20}),
    ("tracerl", {"lora__rank": 2, "model__param_dtype": "bfloat16"}, {}),
    ("tracerl", {"value__enabled": True}, {"rollout.policy": "learned:/no/such"}),
    ("sft", {"masking__suffix_block_length": 8}, {"data.gen_length": 20}),
    (
        "state_sft",
        {"learner__method": "semi_ar", "learner__block_length": 8, "learner__num_pads": 1}
        | {"data__length_buckets": (8,), "data__pack_length": 40},
        {"data.gen_length": 30},
    ),
    ("policy_environments", {"optimizer__warmup_steps": 9, "train__steps": 10}, {}),
]


@pytest.mark.parametrize(("recipe", "trained", "elsewhere"), TRAINED)
def test_what_can_be_trained_can_be_evaluated_elsewhere_too(
    tiny_config, recipe, trained, elsewhere
):
    policies = ("threshold:threshold=0.5",)
    config = tiny_config(recipe, eval__policies=policies, eval__block_lengths=(0,), **trained)
    recipes.read(config)
    config.update_from_flattened_dict(elsewhere)
    given = config.to_json()
    assert "threshold" in eval_command.list_measurements(config, speed=None, nfe=None)
    assert config.to_json() == given


@pytest.mark.parametrize(
    ("recipe", "key"),
    [
        ("tracerl", "learner.chunk_size"),
        ("joint", "denoiser.learner.chunk_size"),
        ("state_sft", "learner.chunk_size"),
        ("sft", "data.batch_size"),
        ("policy_grpo", "rollout.prompts_per_step"),
    ],
)
def test_rows_that_divide_among_the_devices_stay_as_they_are(tiny_config, recipe, key):
    config = tiny_config(recipe)
    config.update_from_flattened_dict({key: 48})
    (settings, _), *_ = eval_command._varied(config)
    assert flat(settings)[key] == 48


def test_the_default_grid_can_be_read():
    from jax_unmask.evaluation.candidates import candidates

    found = candidates(recipes.defaults("policy_grpo"))
    assert len({candidate.method for candidate in found}) == 7
    assert all(candidate.label == "heuristic" for candidate in found)


class TestAxes:
    def test_every_combination_is_measured_once_into_one_report(self, config, tmp_path):
        config.eval.update(num_problems=2, examples=0, block_lengths=(0,))
        config.rollout.block_length = 8
        config.eval.policies = ("threshold:threshold=0.5",)
        config.eval.axes = ("rollout.gen_length=8|16", f"model.path={config.model.path}")
        found = eval_command.evaluate(config, tmp_path)
        assert [(r.gen_length, r.block_length) for r in found] == [(8, 8), (16, 16)]
        lines = (tmp_path / "results.jsonl").read_text().splitlines()
        assert [json.loads(line)["axes"] for line in lines] == [
            {"rollout.gen_length": 8},
            {"rollout.gen_length": 16},
        ]
        text = (tmp_path / "report.html").read_text()
        data = json.loads(text.partition('id="data">')[2].partition("</script>")[0])
        titles = [section["title"].rpartition(", ")[2] for section in data["sections"]]
        assert titles == ["gen_length 8", "gen_length 16"]
        assert (tmp_path / "frontier-2.png").exists()
        eval_command.evaluate(config, tmp_path)
        assert (tmp_path / "results.jsonl").read_text().splitlines() == lines

    def test_alternatives_may_change_several_keys(self, config):
        config.eval.axes = (
            "rollout.gen_length=8|16",
            "task.name=sudoku,task.prompt_length=17|task.name=arithmetic,task.prompt_length=20",
        )
        found = [each.values for each in axes.combinations(config)]
        assert [list(values.values()) for values in found] == [
            [8, "sudoku", 17],
            [8, "arithmetic", 20],
            [16, "sudoku", 17],
            [16, "arithmetic", 20],
        ]
        assert axes.combinations(config)[1].config.task.name == "arithmetic"
        assert config.task.name == "sudoku"

    @pytest.mark.parametrize(
        ("lines", "message"),
        [
            (("rollout.gen_lenght=8",), "'rollout.gen_lenght'.* rollout.gen_length"),
            (("rollout.gen_length=eight",), "rollout.gen_length=eight"),
            (("rollout.gen_length=8|",), "empty value"),
            (("recipe=sft",), "'recipe'"),
            (("seed=1", "seed=2"), r"config\.eval\.axes = \('seed=1', 'seed=2'\)"),
            (("seed=1|task.path=x",), r"config\.eval\.axes = .*'task\.path=x' .* seed\b"),
        ],
    )
    def test_says_what_is_wrong_before_anything_is_loaded(self, config, tmp_path, lines, message):
        config.model.path = "/no/such/model"
        config.eval.axes = lines
        with pytest.raises(ConfigError, match=message):
            eval_command.evaluate(config, tmp_path)


def test_a_dry_run_makes_the_task_but_needs_no_published_data(config):
    config.eval.update(num_problems=10, policies=("threshold",))
    config.task.settings = ("givns=3",)
    with pytest.raises(ConfigError, match=r"config\.task\.settings.*givns"):
        eval_command.list_measurements(config, speed=None, nfe=None)
    config.task.update(name="gsm8k", path=None, settings=())
    assert "10 generations" in eval_command.list_measurements(config, speed=None, nfe=None)
