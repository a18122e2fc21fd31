"""Runs whose last steps updated nothing."""

import pytest

from jax_unmask.runtime.divergence import Untrained, require_trained


def rows(*records):
    """Records of (skipped, reward), with a right answer for each reward of 1."""
    return [
        {"step": step, "skipped": skipped, "reward": reward, "accuracy": float(reward == 1)}
        for step, (skipped, reward) in enumerate(records, start=1)
    ]


@pytest.mark.parametrize(
    "records",
    [
        [],
        [(0, 0.2)],
        [(1, 0.0)] * 5 + [(0, 0.2)],
        # Nothing to learn any more, or from the start.
        [(0, 0.2)] * 2 + [(1, 1.0)] * 8,
        [(1, 1.0)] * 5,
        # Too few to tell.
        [(1, 0.0)] * 2,
        # Not yet the end.
        [(0, 0.2)] + [(1, 0.0)] * 2,
        [(0, 0.2)] * 96 + [(1, 0.0)] * 4,
    ],
)
def test_learned_to_the_end(records):
    require_trained(rows(*records), 10)


@pytest.mark.parametrize("losses", [[0.5] * 5, [3.0, 20.0, 29.0, 29.0, 29.0], [1e-4] + [5.0] * 4])
def test_supervised_losses(losses):
    require_trained([{"step": step, "loss": loss} for step, loss in enumerate(losses)], 5)


@pytest.mark.parametrize("losses", [[3.0, 20.0, 31.0, 1e9, 1e9], [1e-4] + [11.0] * 4])
def test_supervised_losses_that_explode(losses):
    with pytest.raises(Untrained, match=r"optimizer\.lr"):
        require_trained([{"step": step, "loss": loss} for step, loss in enumerate(losses)], 5)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([(1, 0.0)] * 3, r"trained in 10 .*filter\.low"),
        ([(1, 0.0)] * 9 + [(1, 1.0)], r"trained in 10 .*filter\.low"),
        ([(0, -0.2)] + [(1, -1.0)] * 3, r"collapsed: .* after step 1 .* 3 records"),
        ([(0, 0.2)] * 90 + [(1, 0.0)] * 10, r"step 90 .* 10 records.* 0 .* 0\.2\b"),
    ],
)
def test_lost(records, message):
    with pytest.raises(Untrained, match=message):
        require_trained(rows(*records), 10)


def test_a_policy_and_its_denoiser_by_turns():
    of_policy = rows(*[(0, 0.2)] * 2, *[(1, 0.0)] * 4)
    of_denoiser = [
        {"step": row["step"], "reward": 0.0, "skipped/denoiser": 0, "reward/denoiser": 0.0}
        for row in of_policy
    ]
    turns = [row for pair in zip(of_policy, of_denoiser, strict=True) for row in pair]
    require_trained(of_denoiser, 10)
    with pytest.raises(Untrained, match=r"collapsed: .* after step 2"):
        require_trained(turns, 10)
    # The denoiser is lost where the policy goes on.
    lost = [row | {"skipped": 0} for row in of_policy]
    require_trained(lost, 10)
    for row in lost:
        row |= {"skipped/denoiser": int(row["step"] > 2), "reward/denoiser": row["reward"]}
    with pytest.raises(Untrained, match=r"collapsed: .* after step 2"):
        require_trained(lost, 10)
    # One that has never learned is none that is lost.
    require_trained([row | {"skipped/denoiser": 1} for row in lost], 10)
