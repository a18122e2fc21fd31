"""Every experiment in configs/ is one that the commands accept."""

import pathlib
import runpy

import pytest

from jax_unmask import recipes, settings
from jax_unmask.commands import eval as evaluate
from jax_unmask.evaluation import axes, candidates
from jax_unmask.recipes import curriculum, policy_environments
from jax_unmask.shipped import shipped_models

ROOT = pathlib.Path(__file__).parents[2]
EXPERIMENTS_OF_PAPER = tuple(
    f"{model}_{length}_{block}_{task}"
    for model in ("llada", "dream")
    for length in (256, 512)
    for block in ("32", "full")
    for task in ("gsm8k", "math500", "humaneval", "mbpp")
)
EXPERIMENTS = (
    *("quickstart", "gsm8k", "gsm8k_math", "gsm8k_math:32", "kodcode", "block_scaling"),
    *("trado:4b", "trado:8b"),
    *("tiny_block_scaling:1", "published:scales", "published:pass_at_k"),
    *("tiny_block_sft", "tiny_sft:word_problems"),
    *(f"tiny_state_sft:{study}" for study in ("full", "block", "long")),
    *(f"tiny_long_answers:{method},1" for method in ("both", "fixed")),
    *("universal_policy", "universal_policy:sudoku", "universal_policy:all-countdown"),
    "universal_policy:all-arithmetic-word_problems,sudoku=universal,countdown=universal",
    *(
        f"{name}:{task}"
        for name in ("tiny_sft", "tiny_policy")
        for task in ("sudoku", "arithmetic", "countdown")
    ),
    *("tracerl:full", "tracerl:block"),
    *("tiny_joint", "tiny_joint:sudoku", "tiny_joint:sudoku,policy", "tiny_joint:sudoku,denoiser"),
    *("sft_large:sdar-4b", "sft_large:trado-8b,long", "sft_large:sdar-1.7b,trace"),
    *("sft_large:llada,random", "sft_large:dream", "sft_large:dream,ar"),
    *(f"published:{name}" for name in EXPERIMENTS_OF_PAPER),
    "published:all",
    *(
        f"tracerl_large:{model},{task}"
        for model, task in (
            *(("llada", "gsm8k"), ("dream", "math"), ("sdar-1.7b", "math-levels")),
            *(("sdar-4b", "math"), ("sdar-8b", "code"), ("trado-4b", "math")),
            *(("trado-8b", "code"), ("trado-8b-thinking", "math")),
        )
    ),
)
# TraceRL as published: arXiv 2509.06949 (sections 5.1, B.3) and the files of its public
# configurations. Rows per optimiser step are micro-batch x accumulation x devices; here they are
# the states of all responses over the minibatches, at the canvas' full length.
TRACERL = {
    # Keys: rl_dream, rl_llada; multinode_rl_sdar, multinode_rl_trado.
    "dream,math": {
        "model.path": "Dream-org/Dream-v0-Instruct-7B",
        "rollout.gen_length": 1024,
        "task.prompt_length": 512,
        "rollout.prompts_per_step": 32,
        "rollout.group_size": 8,
        "rollout.block_length": 32,
        "rollout.temperature": 0.8,
        "rollout.top_k": 50,
        "rollout.top_p": 0.9,
        "learner.shrink": 8,
        "train.steps": 50,
        "rows per optimiser step": 2 * 128 * 8,
        "horizon": 128,
    },
    "llada,math": {
        "model.path": "GSAI-ML/LLaDA-8B-Instruct",
        "rollout.gen_length": 512,
        "task.prompt_length": 512,
        "rollout.prompts_per_step": 32,
        "rollout.group_size": 8,
        "rollout.block_length": 32,
        "rollout.temperature": 0.8,
        "learner.shrink": 8,
        "train.steps": 50,
        "rows per optimiser step": 2 * 128 * 8,
        "horizon": 128,
    },
    **{
        f"{name},math": {
            "model.path": path,
            "rollout.gen_length": length,
            "task.prompt_length": 784,
            "rollout.prompts_per_step": 128,
            "rollout.group_size": 32,
            "rollout.block_length": 4,
            "rollout.policy": "dynamic:threshold=0.9,steps=4",
            "rollout.temperature": 1.0,
            "rollout.top_k": 0,
            "rollout.top_p": 1.0,
            "learner.shrink": 1,
            "train.steps": 80,
            "rows per optimiser step": 1 * 8 * 32,
        }
        for name, path, length in (
            ("sdar-1.7b", "JetLM/SDAR-1.7B-Chat", 2000),
            ("sdar-4b", "JetLM/SDAR-4B-Chat", 2000),
            ("sdar-8b", "JetLM/SDAR-8B-Chat", 2000),
            ("trado-4b", "Gen-Verse/TraDo-4B-Instruct", 2000),
            ("trado-8b", "Gen-Verse/TraDo-8B-Instruct", 2000),
            ("trado-8b-thinking", "Gen-Verse/TraDo-8B-Thinking", 30_000),
        )
    },
}
TRACERL_COMMON = {
    "optimizer.lr": 1e-6,
    "value.lr": 5e-6,
    "value.gamma": 1.0,
    "value.lam": 1.0,
    "value.clip": 0.2,
    "optimizer.schedule": "constant",
    "optimizer.warmup_steps": 0,
    "optimizer.b1": 0.9,
    "optimizer.b2": 0.999,
    "optimizer.weight_decay": 0.0,
    "optimizer.grad_clip": 1.0,
    "learner.clip": 0.2,
    "learner.beta": 0.01,
    "learner.kl": "k3",
    "learner.passes": 1,
    "learner.num_pads": 0,
    "learner.temperature": 1.0,
    "filter.low": 0.2,
    "filter.high": 0.8,
    "reward.alpha": 0.0,
    "reward.advantage": "z_score",
    "reward.limit_margin": 5,
    "task.path": "hub:Gen-Verse/MATH_train",
    "checkpoint.every": 10,
    "eval.every": 10,
}


@pytest.mark.parametrize("choice", TRACERL)
def test_tracerl_has_the_published_values(choice):
    config = recipes.read(_config(f"tracerl_large:{choice}"))
    found = settings.flat(config)
    rollout, learner = config.rollout, config.learner
    is_full = choice.startswith(("llada", "dream"))
    per_response = rollout.gen_length if is_full else rollout.block_length
    states = rollout.rows * -(-per_response // learner.shrink)
    found["rows per optimiser step"] = states // learner.minibatches
    found["horizon"] = rollout.cache.horizon
    expected = TRACERL_COMMON | TRACERL[choice]
    assert {key: found[key] for key in expected} == expected
    style = "thinking" if choice.startswith("trado-8b-thinking") else "step_by_step"
    assert f"prompt_style={'boxed' if is_full else style}" in config.task.settings
    assert "equivalence=symbolic" in config.task.settings


def test_programs_of_tracerl_earn_their_share_of_tests_whatever_their_length():
    config = recipes.read(_config("tracerl_large:sdar-8b,code"))
    assert config.task.settings == ("test_path=hub:Gen-Verse/LiveCodeBench", "partial=true")
    assert (config.task.name, config.task.path) == (
        "primeintellect",
        "hub:Gen-Verse/PrimeIntellect",
    )
    assert config.reward.limit_margin is None
    assert (config.filter.low, config.filter.high) == (0.0, 1.0)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_is_valid(experiment, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    config = _config(experiment)
    if recipes.is_curriculum(config):
        found = curriculum.stages(config, tmp_path)
        assert len(found) > 1
        for stage in found:
            recipes.read(stage.config)
    else:
        recipes.read(config)


def test_all_published_settings_make_one_sweep(monkeypatch):
    monkeypatch.chdir(ROOT)
    make = runpy.run_path("configs/published.py")["get_config"]
    found = set()
    for each in axes.combinations(make("all")):
        config = each.config
        config.eval.policies = ("threshold",)
        for candidate in candidates.candidates(recipes.read(config)):
            for block in candidate.block_lengths:
                found.add(_environment(config, block))
    assert len(found) == 32
    singles = [make(name) for name in EXPERIMENTS_OF_PAPER]
    assert found == {_environment(one, one.rollout.block_length) for one in singles}
    assert make("llada_256_32") == make("llada_256_32_gsm8k")


def _environment(config, block):
    return config.model.path, config.task.name, config.rollout.gen_length, block


@pytest.mark.parametrize("trained_as", ["gsm8k", "gsm8k_math", "gsm8k_math:32", "kodcode"])
def test_every_training_can_be_measured_on_a_longer_canvas(trained_as, monkeypatch):
    """Expert steering is for full diffusion, which an evaluation need not be."""
    monkeypatch.chdir(ROOT)
    config = _config(trained_as)
    config.rollout.gen_length = 512
    config.eval.block_lengths = (32, 0)
    text = evaluate.list_measurements(config, speed=50, nfe=None)
    assert "hours at 50 row forwards per second" in text


def test_every_environment_of_the_universal_policy_has_the_settings_of_its_task_alone():
    tasks = shipped_models()
    alone = [settings.flat(recipes.read(_config(f"tiny_policy:{task}"))) for task in tasks]
    both = [settings.flat(each) for each in recipes.read(_config("universal_policy:all")).each]
    own = [settings.flat(recipes.read(_config(f"universal_policy:{task}"))) for task in tasks]
    for key in alone[0]:
        if len({str(each[key]) for each in alone}) == 1 or key.startswith("eval."):
            continue  # The same in all, or of the evaluation, which measures the first.
        if key.startswith(policy_environments.GROUPS):
            expected = [each[key] for each in alone]
        else:  # The policy is one: on a task alone, too, it is that of all.
            expected = [own[0][key]] * len(tasks)
            assert [each[key] for each in own] == expected, key
        assert [each[key] for each in both] == expected, key


def _config(experiment):
    name, _, argument = experiment.partition(":")
    make = runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"]
    return make(argument) if argument else make()


def test_all_of_them_are_tested():
    assert {path.stem for path in (ROOT / "configs").glob("*.py")} == {
        experiment.partition(":")[0] for experiment in EXPERIMENTS
    }


def test_each_task_of_one_policy_needs_a_teacher():
    with pytest.raises(ValueError, match=r"for sudoku; .*arithmetic, countdown"):
        _config("universal_policy:all,sudoku=universal")


@pytest.mark.parametrize("choice", ["universal_policy:all-chess", "tiny_joint:sudoku,chess"])
def test_a_part_of_a_choice_that_is_unknown_is_not_passed_over(choice):
    with pytest.raises(ValueError, match=f"{choice.replace(':', '.py:')} .*:sudoku"):
        _config(choice)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        *((name, "sudoku") for name in ("tiny_sft", "tiny_policy", "tiny_joint")),
        *(("universal_policy", "sudoku"), ("tracerl", ":block"), ("tracerl_large", "math")),
        *(("published", "pass_at_k"), ("sft_large", "MODEL"), ("tiny_block_scaling", ":SEED")),
        *(("tiny_state_sft", ":long"), ("tiny_long_answers", ":both"), ("gsm8k_math", "full")),
        ("trado", ":8b"),
    ],
)
def test_an_unknown_choice_is_refused_with_those_that_there_are(name, known):
    with pytest.raises(ValueError, match=rf"{name}\.py:chess .*{known}"):
        _config(f"{name}:chess")


def test_the_reference_page_is_that_of_the_declarations():
    from jax_unmask.recipes.__main__ import page

    assert (ROOT / "docs" / "config.md").read_text() == page(), (
        "run python -m jax_unmask.recipes > docs/config.md"
    )


@pytest.mark.parametrize("name", list(recipes.RECIPES))
def test_every_value_out_of_its_range_is_refused(name):
    for each in settings.declared(recipes.defaults(name)):
        bad = [each.le and each.le * 2, each.lt, each.gt, each.ge is not None and each.ge - 1]
        wrong = [value for value in bad if value is not None and value is not False]
        wrong += [float("nan"), float("inf"), 1e300] if each.kind is float else []
        wrong += ["no such choice"] if each.choices else []
        wrong += [True] if each.kind in (int, float) else [object()]
        for value in wrong:
            with pytest.raises(settings.SettingError):
                each.check((value,) if each.is_tuple else value)
        assert len(each.help) > 4
