"""Measuring one policy on problems."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from jax_unmask import recipes
from jax_unmask.evaluation.measure import Measurement, measure
from jax_unmask.evaluation.problems import Problems, load_problems
from jax_unmask.policies import parse_policy
from jax_unmask.rollout import RolloutSettings
from jax_unmask.runtime.compilation import CompileTimes

N = 10


class CountsDigits:
    """Checks something that a random denoiser sometimes gets right; records what it was asked."""

    def __init__(self, task) -> None:
        self._task = task
        self.asked: list[str] = []

    def check_batch(self, examples, responses):
        self.asked += [example["prompt"] for example in examples]
        return [float(response.count("1") % 2) for response in responses]


@pytest.fixture
def problems(config, bundle):
    config.eval.num_problems = N
    return load_problems(recipes.read(config), bundle, bundle.task, "test")


def run(
    bundle,
    problems,
    policy,
    *,
    batch_size,
    seed=0,
    task=None,
    temperature=0.0,
    rows=None,
    buckets=(),
):
    chosen, params = parse_policy(policy)
    return measure(
        bundle.denoiser,
        bundle.params,
        bundle.tokenizer,
        task or CountsDigits(bundle.task),
        problems.examples,
        problems.prompts,
        chosen,
        params,
        RolloutSettings(gen_length=16, block_length=16, temperature=temperature),
        seed=seed,
        batch_size=batch_size,
        rows=rows,
        buckets=buckets,
    )


@pytest.fixture
def expected(bundle, problems):
    return run(bundle, problems, "random:tokens_per_step=3", batch_size=4, temperature=1.0)


@pytest.mark.parametrize(("batch_size", "rows"), [(3, 4), (64, None)])
def test_results_do_not_depend_on_the_shape(bundle, problems, expected, batch_size, rows):
    policy = "random:tokens_per_step=3"
    found = run(bundle, problems, policy, batch_size=batch_size, rows=rows, temperature=1.0)
    assert found.responses == expected.responses
    np.testing.assert_array_equal(found.nfe, expected.nfe)
    np.testing.assert_array_equal(found.correct, expected.correct)
    assert 0 < expected.correct.mean() < 1


def test_scores_that_are_not_finite_are_no_result(bundle, problems):
    norm = jax.tree.map(lambda x: x * np.nan, bundle.params["final_norm"])
    broken = dataclasses.replace(bundle, params={**bundle.params, "final_norm": norm})
    with pytest.raises(FloatingPointError, match="not finite"):
        run(broken, problems, "random:tokens_per_step=3", batch_size=4, temperature=1.0)


def test_results_do_not_depend_on_the_length_that_prompts_are_padded_to(bundle, problems):
    """Problems 0, 3, 6 and 9 have lost the start of their prompts, and fit into a shorter one."""
    mask = np.array(problems.prompts.mask)
    mask[::3, :9] = False
    problems = dataclasses.replace(problems, prompts=problems.prompts.replace(mask=mask))
    policy = "random:tokens_per_step=3"
    expected = run(bundle, problems, policy, batch_size=4, temperature=1.0)
    task = CountsDigits(bundle.task)
    found = run(
        bundle, problems, policy, batch_size=4, temperature=1.0, rows=3, buckets=(8,), task=task
    )
    assert found.responses == expected.responses
    np.testing.assert_array_equal(found.nfe, expected.nfe)
    np.testing.assert_array_equal(found.correct, expected.correct)
    prompts = [example["prompt"] for example in problems.examples]
    assert task.asked == [*prompts[::3], *(prompts[k] for k in range(N) if k % 3)]


def test_padding_rows_are_neither_rolled_out_nor_checked(bundle, problems):
    task = CountsDigits(bundle.task)
    policy = "top_confidence:tokens_per_step=1"
    found = run(bundle, problems, policy, batch_size=4, rows=8, task=task)
    assert task.asked == [example["prompt"] for example in problems.examples]
    assert len(found.correct) == len(found.nfe) == len(found.responses) == N
    assert (found.nfe == 16).all()
    # Twice four rows in the first rollout, two (of eight) in the second.
    assert found.forwards == 3 * 16
    assert found.summary()["useful_forward_fraction"] == pytest.approx(N / 12)


def test_settings_share_one_program(bundle, problems):
    run(bundle, problems, "threshold:threshold=0.9", batch_size=5)
    compiled = CompileTimes()
    for threshold in (0.2, 0.5):
        run(bundle, problems, f"threshold:threshold={threshold}", batch_size=5)
    fewer = Problems("test", problems.examples[:6], jax.tree.map(lambda x: x[:6], problems.prompts))
    run(bundle, fewer, "threshold:threshold=0.9", batch_size=5, rows=N)
    assert compiled.programs == 0


def test_an_error_of_the_checker_is_raised(bundle, problems):
    class Broken:
        def check_batch(self, examples, responses):
            raise RuntimeError("cannot check")

    with pytest.raises(RuntimeError, match="cannot check"):
        run(bundle, problems, "threshold", batch_size=5, task=Broken())


def test_summary_of_hand_made_numbers():
    measurement = Measurement(
        correct=np.array([1, 0, 1, 1], np.float32),
        nfe=np.array([2, 4, 4, 6], np.int32),
        responses=["a", "b", "c", "d"],
        seconds=2.0,
        compile_seconds=9.0,
        batch_size=2,
        forwards=10,
        cost=np.array([1.0, 2.0, 2.0, 3.0]),
        executed_cost=10.0,
        tokens=50,
        still_masked=0.25,
    )
    assert measurement.summary() == pytest.approx(
        {
            "n": 4,
            "accuracy": 0.75,
            "accuracy_se": math.sqrt(0.75 * 0.25 / 3),
            "nfe_mean": 4.0,
            "nfe_se": math.sqrt(8 / 3 / 4),
            "cost_mean": 2.0,
            "cost_se": math.sqrt(2 / 3 / 4),
            "seconds_per_sequence": 0.5,
            "tokens_mean": 12.5,
            "tokens_per_second": 25.0,
            "useful_forward_fraction": 16 / 20,
            "still_masked": 0.25,
        }
    )
