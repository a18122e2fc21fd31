"""Rows of results, rollouts and pages that tests of reports share."""

import numpy as np

from jax_unmask.policies.base import Action, Observation
from jax_unmask.report import frontier, payload, results, traces
from jax_unmask.rollout import Prompts, Trajectory
from jax_unmask.rollout.trajectory import Records

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> <!-- & \"' \u2028 \ud800"


def row(label, method, correct, nfe, *, split="test", block=4, seed=0, training_seed=None, **set_):
    """A row of results.jsonl, with the score of each problem."""
    correct = np.asarray(correct, float)
    return {
        "label": label,
        "method": method,
        "settings": set_,
        "split": split,
        "block_length": block,
        "gen_length": 16,
        "seed": seed,
        "training_seed": training_seed,
        "n": len(correct),
        "accuracy": correct.mean(),
        "accuracy_se": frontier.standard_error(correct),
        "nfe_mean": float(nfe),
        "nfe_se": 0.1,
        "seconds_per_sequence": 0.01,
        "still_masked": 0.0,
        "correct": correct,
    }


def measured(*rows):
    return results.collect(rows, lambda row: (row["correct"], np.full(row["n"], row["nfe_mean"])))


def trajectory():
    """Two rows of four positions: the second takes two steps, in blocks of two."""
    masked = np.array([[[1, 1, 1, 1], [1, 1, 1, 1]], [[0, 0, 0, 0], [0, 0, 1, 1]]], bool)
    obs = Observation(
        candidate=np.array([[[5, 5, 5, 5], [7, 8, 9, 9]], [[5, 5, 5, 5], [1, 1, 9, 6]]]),
        confidence=np.array([np.full((2, 4), 0.5), np.full((2, 4), 1.0)]),
        top_probs=np.zeros((2, 2, 4, 1)),
        masked=masked,
        legal=masked,
        step=np.array([[0, 0], [1, 1]]),
        step_in_block=np.zeros((2, 2), int),
        block_start=np.array([[0, 0], [0, 2]]),
    )
    fill = masked.copy()
    fill[0, 1, 2:] = False
    return Trajectory(
        prompts=Prompts(tokens=np.zeros((2, 1)), mask=np.ones((2, 1))),
        tokens=np.array([[5, 5, 5, 5], [7, 8, 9, 6]]),
        step_map=np.array([[0, 0, 0, 0], [0, 0, 1, 1]]),
        confidence=np.full((2, 4), 0.98765),
        nfe=np.array([1, 2]),
        forwards=np.array(2),
        slots=2,
        records=Records(obs, Action(fill=fill, log_prob=np.zeros((2, 2))), masked.any(-1)),
    )


def pieces(tokens):
    return [f"<{token}>" for token in tokens]


def one_trace(rollout=None, **changes):
    arguments = {"method": "m", "settings": "s=1", "text": "t", "block_length": 2} | changes
    return traces.trace(rollout or trajectory(), 1, pieces, **arguments)


def hostile_page():
    """Data of a page in which every text looks like markup."""
    names = dict.fromkeys(("method", "settings", "text", "label"), HOSTILE)
    trace = one_trace(**names, score=0.0) | {"pieces": [HOSTILE] * 4}
    turns = [{"role": "user", "content": HOSTILE}]
    found = measured(row("heuristic", HOSTILE, [1, 0], 4, **{HOSTILE: HOSTILE}))
    return {
        "title": HOSTILE,
        "subtitle": HOSTILE,
        "sections": [payload.section(found, "test", title=HOSTILE)],
        "curves": [{"name": HOSTILE, "steps": [1, 2], "metrics": {HOSTILE: [1.0, None]}}],
        "problems": [traces.problem(HOSTILE, turns, [trace], target=HOSTILE)],
        "problems_note": HOSTILE,
    }
