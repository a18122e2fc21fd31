"""The card of a trained policy."""

import json
import pathlib
import re
import shutil

import pytest

import jax_unmask
from jax_unmask import recipes
from jax_unmask.policies.checkpoint import made_for
from jax_unmask.report import results
from jax_unmask.report.model_card import policy_card, write_policy_card
from jax_unmask.shipped import shipped_policies

POLICIES = pathlib.Path(jax_unmask.__file__).parent / "assets" / "policies"
STEPS = [{"step": step, "accuracy": step / 100, "nfe": 4.0, "reward": 0.5} for step in range(1, 31)]
ROW = {
    "label": results.TRAINED,
    "task": "gsm8k",
    "split": "test",
    "n": 200,
    "block_length": 32,
    "settings": {"temperature": 1.0},
    "accuracy": 0.7654,
    "accuracy_se": 0.03,
    "nfe_mean": 41.25,
}


def test_says_what_it_was_trained_on_how_it_acts_and_how_well():
    config = recipes.config("policy_grpo")
    config.reward.alpha, config.model.quantization = 3.0, "int8"
    card = policy_card(
        recipes.parse(config), {"distribution": "bernoulli", "scale": 1.0}, STEPS, [ROW]
    )
    header, body = card.removeprefix("---\n").split("---\n", 1)
    fields = dict(line.split(": ", 1) for line in header.splitlines())
    assert json.loads(fields["base_model"]) == "GSAI-ML/LLaDA-8B-Instruct"
    assert json.loads(fields["pipeline_tag"]) == "text-generation"
    (measured,) = json.loads(fields["model-index"])[0]["results"]
    assert [metric["value"] for metric in measured["metrics"]] == [76.5, 41.25]
    assert "generate --policy=learned:. --chat" in body
    assert json.loads(fields["tags"]) == ["diffusion-language-model", "unmasking-policy"]
    for text in (
        "| denoiser | GSAI-ML/LLaDA-8B-Instruct, frozen, int8 (bfloat16) |",
        "| canvas | 256 tokens in blocks of 32, temperature 0, cache none |",
        "| reward | multiplicative, alpha 3 |",
        "| each step | 16 prompts x 8 rollouts, 0 experts |",
        "| steps | 30, seed 0 |",
        "- distribution: bernoulli",
        "mean of the last 20 recorded steps",
        "| accuracy | 0.205 |",  # The mean of 0.11 .. 0.30.
        "| gsm8k | test | 200 | 32 | temperature=1 | 76.5 ± 3.0 | 41.25 |",
    ):
        assert text in body


def test_a_local_denoiser_is_no_base_model_and_no_steps_are_no_metrics():
    config = recipes.config("policy_grpo")
    config.model.path = "/data/llada"
    card = policy_card(recipes.parse(config), {}, [])
    assert "base_model" not in card
    assert "No training steps were recorded." in card


def test_is_written_from_what_the_run_left(tmp_path):
    shutil.copytree(POLICIES / shipped_policies()[0], tmp_path, dirs_exist_ok=True)
    lines = [json.dumps(step) for step in STEPS]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    other = ROW | {"label": results.HEURISTIC, "nfe_mean": 99.0}
    rows = [json.dumps(row) for row in (other, ROW)]
    (tmp_path / "results.jsonl").write_text("\n".join(rows) + "\n")
    write_policy_card(tmp_path, recipes.defaults("policy_grpo"), tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "41.25" in card
    assert "99.00" not in card


def test_names_every_environment_and_the_alphas_that_it_is_told():
    config = recipes.config("policy_environments")
    config.environments = (
        "model.path=sudoku task.name=sudoku rollout.gen_length=16 rollout.block_length=16",
        "model.path=countdown task.name=countdown rollout.prompts_per_step=8",
    )
    config.policy.network.alphas = (0.03, 100.0)
    card = policy_card(recipes.read(config), {"alpha": 0.10000000149}, STEPS)
    for text in (
        "# Unmasking policy for sudoku, countdown on sudoku, countdown",
        "| canvas | 16 tokens in blocks of 16,",
        "| each step | 8 prompts x 8 rollouts, 0 experts |",
        "| reward | multiplicative, told alphas from 0.03 to 100 |",
        "- alpha: 0.1\n",
        "generate --policy=learned:. --model=sudoku\n",
    ):
        assert text in card


def test_experts_and_where_training_started():
    config = recipes.config("policy_grpo")
    config.rollout.block_length = config.rollout.gen_length
    config.expert.update(count=4, policy="threshold:threshold=0.9", block_length=8)
    config.expert.update(imitation=1.0, imitation_steps=45)
    config.policy.init_from = "runs/first/policy"
    card = policy_card(recipes.parse(config), {}, STEPS)
    assert "4 experts (threshold:threshold=0.9 in blocks of 8) whose right rollouts" in card
    assert "| start | another trained policy |" in card


@pytest.mark.parametrize("name", shipped_policies())
def test_shipped_policies_have_cards_with_measurements(name):
    card = (POLICIES / name / "README.md").read_text()
    assert f"Unmasking policy for {made_for(POLICIES / name)[0].model}" in card
    assert re.search(r"\| test \| (1000|256) \|", card)
