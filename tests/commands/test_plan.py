"""`python -m jax_unmask.plan`: what a run needs, and that LLaDA-8B's programs build."""

import dataclasses
import pathlib
import re
import runpy
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from jax_unmask import recipes
from jax_unmask.commands.plan import plan
from jax_unmask.planning.programs import Program
from jax_unmask.recipes import layout
from jax_unmask.recipes.layout import Estimate, denoiser_shape
from jax_unmask.runtime import accelerators, terminal
from jax_unmask.settings import ConfigError, flat

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
VOCABULARY = 126_464


def load(name):
    return runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]()


@pytest.fixture(
    scope="module",
    params=["gsm8k", pytest.param("gsm8k compiled", marks=pytest.mark.slow), "gsm8k_math"],
)
def published(request):
    """The plan of a published recipe at full size: nothing of that size is allocated."""
    name, _, compiled = request.param.partition(" ")
    return plan(load(name), compile_programs=bool(compiled))


class TestLLaDA8B:
    def test_counts(self, published):
        assert published.denoiser_parameters == 8_015_581_184
        assert published.trained_parameters == 331_265
        assert published.lasting_bytes["denoiser"] == 2 * 8_015_581_184
        # Weights and two moments in float32, and a few counters.
        state = published.lasting_bytes["policy and optimiser"]
        assert 0 < state - 3 * 4 * 331_265 < 100
        experts = published.config.expert.count
        assert published.config.rows == 128 + 16 * experts

    def test_step_is_traced_at_full_size(self, published):
        names = [program.name for program in published.programs]
        experts = published.config.expert.count
        assert names == ["rollout", *["expert rollout"] * experts, "update"]
        trajectory = published.programs[0].lowered.out_info
        assert trajectory.tokens.shape == (128, 256)
        assert trajectory.records.obs.confidence.shape == (256, 128, 256)
        state, _ = published.programs[-1].lowered.out_info
        assert state.step.shape == ()

    def test_fits_one_accelerator(self, published):
        # One of 80 GB has room to spare; the logits of all canvases would be 16.6 GB more.
        assert published.estimate.total < 32e9
        if published.needed_bytes is not None:
            assert published.estimate.total == pytest.approx(published.needed_bytes, rel=0.15)

    def test_logits_never_exist_for_the_whole_vocabulary(self, published):
        for program in published.programs[:-1]:
            shapes = set(
                re.findall(rf"tensor<((?:\d+x)*{VOCABULARY}(?:x\d+)*)x\w+>", _text(program))
            )
            assert shapes == {f"{VOCABULARY}x4096"}

    def test_records_are_counted(self, published):
        records = published.programs[0].lowered.out_info.records
        cells = 256 * 128 * 256
        # Candidate, confidence, top probability: 4 bytes; masked, legal, fill: 1 byte.
        assert records.obs.top_probs.dtype == jnp.float32
        whole = published.records_bytes
        if published.config.expert.count:
            # One expert beside eight rollouts, then all nine merged.
            whole = whole * 8 / (8 + 1 + 9)
        assert 15 * cells < whole < 15 * cells * 1.01

    def test_table(self, published):
        table = published.table()
        assert "8,015,581,184 parameters" in table
        assert re.search(r"denoiser +16\.03 GB", table)
        assert "temporaries of rollout" in table


def _text(program) -> str:
    return program.lowered.as_text()


@pytest.fixture(scope="module")
def tiny_plan(tiny_config):
    config = tiny_config(expert__count=1, expert__block_length=4, rollout__vocab_chunk=4)
    return plan(config, compile_programs=True)


@pytest.mark.thorough
def test_compiled_programs_tell_their_memory(tiny_plan):
    assert [program.name for program in tiny_plan.programs] == [
        "rollout",
        "expert rollout",
        "update",
    ]
    assert all(program.temporary_bytes > 0 for program in tiny_plan.programs)
    lasting = sum(tiny_plan.lasting_bytes.values()) + tiny_plan.records_bytes
    most = max(program.temporary_bytes for program in tiny_plan.programs)
    assert tiny_plan.peak_bytes == lasting + most
    table = tiny_plan.table()
    assert "temporaries of expert rollout" in table
    assert "peak" in table
    for program in tiny_plan.programs:
        assert program.argument_bytes == pytest.approx(program.shaped_bytes, rel=0.01, abs=1000)
        assert f"{terminal.size_text(program.shaped_bytes)} by their shapes" in table
        # XLA for CPUs counts no temporaries in it.
        assert program.peak_bytes is None


def test_a_program_that_the_compiler_has_no_room_for(tiny_config, monkeypatch):
    def of(traced, **_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 16.99G of 15.75G\nmore")

    monkeypatch.setattr(Program, "of", of)
    with pytest.raises(ConfigError) as error:
        plan(tiny_config(), compile_programs=True)
    assert re.search(r"'rollout' \(RESOURCE_EXHAUSTED: 16.99G of 15.75G\).*slots", str(error.value))


@pytest.mark.parametrize(
    ("recipe", "rollouts", "updates"),
    [
        ("policy_grpo", "rollout.slots: 4 ", None),
        ("policy_environments", "rollout.slots: 4 ", None),
        ("tracerl", "rollout.slots: 4 ", "learner.chunk_size: 8 "),
        ("joint", "rollout.slots: 4 ", "denoiser.learner.chunk_size: 8 "),
        ("sft", None, "data.batch_size: 4 "),
        ("state_sft", "data.batch_size: 4 ", "learner.chunk_size: 16 "),
    ],
)
def test_the_remedy_for_memory_names_settings_that_the_recipe_has(
    recipe, rollouts, updates, tiny_config
):
    changes = {"learner__method": "trace"} if recipe == "state_sft" else {}
    settings, room = recipes.read(tiny_config(recipe, **changes)), 10**9
    for named, each in ((rollouts, Estimate(1, room, 0)), (updates, Estimate(1, 0, room))):
        if named is not None:
            refusal = each.refusal(settings, room, 1, needed=room)
            assert f"config.{named}" in str(refusal)
            keys = re.findall(r"`([\w.]+)`", refusal.remedy)
            assert set(keys) <= set(flat(settings))
            has_adapters = any(key.endswith("lora.rank") for key in keys)
            assert has_adapters == (recipe in ("tracerl", "joint"))


def test_without_compiling_it_traces_the_programs(tiny_config):
    traced = plan(tiny_config())
    assert [program.name for program in traced.programs] == ["rollout", "update"]
    assert traced.peak_bytes is None
    assert "temporaries of rollout, an estimate" in traced.table()


@pytest.mark.parametrize("recipe", ["policy_grpo", "tracerl"])
def test_figures_of_tiny_models_are_in_units_that_show_them(tiny_config, recipe):
    table = plan(tiny_config(recipe), device=accelerators.ACCELERATORS[0]).table()
    assert " kB" in table
    assert not re.search(r" 0\.0* (GB|MB|kB|s|ms|us)\b", table)


@pytest.mark.thorough
def test_the_mesh_chooses_itself_and_says_why(tmp_path):
    """In an empty directory: the weights of LLaDA-8B are more than a v5e chip can hold."""
    command = [sys.executable, "-m", "jax_unmask.plan", "--config=gsm8k", "--devices=v5e-16"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    meshes = "data 16 x fsdp 1 x tensor 1, {} rollouts data 8 x fsdp 1 x tensor 2"
    assert f"16 x v5e: mesh {meshes.format('in')}" in done.stdout
    assert re.search(r"fits: \d\d% of the 16 GB of a v5e, by estimate", done.stdout)
    assert f"Mesh: {meshes.format('for')} (about 0.3 s" in done.stderr
    taken = r"data 8 x fsdp 1 x tensor 2 +0\.3\d+ s   this plan"
    assert re.search(taken, done.stdout)


@pytest.mark.thorough
def test_with_a_block_cache_a_forward_is_over_the_prompt_or_a_block(tmp_path):
    """Not over all 2,784 positions of SDAR-8B's slots, for which no layout would have room."""
    command = [sys.executable, "-m", "jax_unmask.plan", "--devices=v6e-16"]
    command.append(f"--config={CONFIGS}/tracerl_large.py:sdar-8b,math")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "fsdp 16 x tensor 1, in rollouts data 4 x fsdp 1 x tensor 4" in done.stdout
    assert re.search(r"fits: \d\d% of the 32 GB of a v6e, by estimate", done.stdout)


def test_what_no_device_has_room_for_is_refused_with_a_remedy(tiny_config, monkeypatch):
    config = tiny_config("tracerl")
    monkeypatch.setattr(layout, "_memory", lambda device: 10_000)
    monkeypatch.setattr(layout, "_WORTH_ASKING", 0)
    with pytest.raises(ConfigError) as error:
        recipes.read(config, trains=True)
    said = str(error.value)
    assert re.search(r"recipe 'tracerl' needs [1-9]\d*\.\d\d kB", said)
    assert "10.00 kB" in said
    assert re.search(r"more devices: .* \d+ .*\(.*lora\.rank", said)
    recipes.read(config)  # An evaluation needs no optimiser.
    # With adapters there is nothing left to advise but devices; and a plan says so itself.
    config.lora.rank = 2
    small = dataclasses.replace(accelerators.ACCELERATORS[0], memory_bytes=10_000)
    planned = plan(config, device=small)
    assert "DOES NOT FIT" in planned.table()
    assert "lora" not in str(planned.refusal)
    monkeypatch.setattr(layout, "_memory", lambda device: 10**9)
    recipes.read(config, trains=True)


def test_traces_the_other_recipes(tiny_config, tiny_model_dir):
    # With a reference, the weights that training starts from stay.
    traced = plan(tiny_config("tracerl", learner__reference_beta=0.1))
    assert [program.name for program in traced.programs] == ["rollout", "update"]
    # Parameters, two moments of each, and the same of the value model.
    weights = traced.lasting_bytes["denoiser as loaded"]
    assert 5 * weights < traced.lasting_bytes["trained parameters and optimiser"] < 6.5 * weights
    for recipe in ("sft", "state_sft"):
        traced = plan(tiny_config(recipe, model__path=str(tiny_model_dir)))
        assert [program.name for program in traced.programs] == ["update"]
        assert traced.trained_parameters == traced.denoiser_parameters
        assert traced.work.update > 0


def test_reads_the_shape_of_a_model_at_hand(tiny_config):
    shape = denoiser_shape(tiny_config(model__dtype="bfloat16"))
    assert (shape.hidden_size, shape.vocab_size) == (16, 9)
    assert shape.dtype == jnp.bfloat16
    assert shape.param_dtype == jnp.float32


def test_says_what_it_cannot_plan(tiny_config):
    with pytest.raises(ConfigError, match=r"model\.path = 'GSAI-ML/LLaDA-9B'.*GSAI-ML/LLaDA-8B"):
        plan(tiny_config(model__path="GSAI-ML/LLaDA-9B"))
    with pytest.raises(ConfigError, match=r"config\.model\.path = None: .*vocabulary"):
        plan(tiny_config("sft"))
    with pytest.raises(ConfigError, match=r"config\.task\.prompt_length = 60: .*more than the 64"):
        plan(tiny_config(task__prompt_length=60))
