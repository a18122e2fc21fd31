"""Recorded generations as the plain data that the trajectory viewer steps through."""

import base64
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from jax_unmask.report.canvas import END
from jax_unmask.rollout import Trajectory
from jax_unmask.rollout.trajectory import Records

Pieces = Callable[[Sequence[int]], list[str]]


def problem(
    name: str, prompt: str | Sequence[dict[str, str]], traces: Sequence[Any], *, target: str = ""
) -> dict[str, Any]:
    """One problem with the traces of several policies, and a right response if there is one."""
    if not isinstance(prompt, str):
        prompt = "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)
    return {"name": name, "prompt": prompt, "target": target, "traces": list(traces), "open": False}


def trace(
    trajectory: Trajectory,
    row: int,
    pieces: Pieces,
    *,
    method: str,
    settings: str,
    text: str,
    block_length: int,
    label: str = "",
    stop_ids: Sequence[int] = (),
    score: float | None = None,
    probability: Float[Array, "T B L"] | None = None,
    drawing: str = "",
) -> dict[str, Any]:
    """One row of a rollout, position by position and step by step.

    Args:
        trajectory: a rollout (NumPy arrays); with records, the viewer also shows what was not
            filled yet.
        row: which row.
        pieces: text of each token of a canvas.
        method: name of the policy.
        settings: its settings, in words.
        text: the decoded response.
        block_length: length of a block.
        label: group of the policy.
        stop_ids: tokens that end a text.
        score: the checker's score, if there is a checker.
        probability: the policy's probability of filling each position at each step, if it has one.
        drawing: the response as its task draws it, if it does.
    """
    tokens = np.asarray(trajectory.tokens[row])
    nfe = int(trajectory.nfe[row])
    stops = np.flatnonzero(np.isin(tokens, np.asarray(stop_ids, tokens.dtype)))
    blocks = set(range(0, len(tokens), block_length))
    steps: dict[str, Any] | None = None
    if trajectory.records is not None:
        obs = trajectory.records.obs
        starts = np.asarray(obs.block_start[:nfe, row])
        blocks = {0, *starts.tolist()} if nfe else blocks
        odds = None
        if probability is not None:
            odds = _packed(np.asarray(probability[:nfe, row]))
        masked = np.asarray(obs.masked[:nfe, row])
        candidates = np.asarray(obs.candidate[:nfe, row])
        vocabulary, changes = _changes(candidates, masked)
        steps = {
            "confidence": _packed(np.asarray(obs.confidence[:nfe, row])),
            "probability": odds,
            "block_start": starts.tolist(),
            "vocabulary": [
                END if token in stop_ids else pieces([token])[0] for token in vocabulary
            ],
            "candidates": changes,
            "rewritten": _rewritten(trajectory.records, row, nfe, pieces),
        }
    return {
        "method": method,
        "settings": settings,
        "label": label,
        "block_length": block_length,
        "score": score,
        "text": text,
        "drawing": drawing,
        "nfe": nfe,
        "pieces": pieces(tokens.tolist()),
        "ended": int(stops[0]) if stops.size else len(tokens),
        "step_map": np.asarray(trajectory.step_map[row]).tolist(),
        "confidence": [
            float(f"{value:.4g}") for value in np.asarray(trajectory.confidence[row], np.float64)
        ],
        "blocks": sorted(blocks),
        "steps": steps,
    }


def _packed(probabilities: np.ndarray) -> str:
    """Probabilities as bytes, in steps of 1/255: base64 of [steps * L]."""
    scaled = np.rint(np.clip(probabilities, 0.0, 1.0) * 255).astype(np.uint8)
    return base64.b64encode(scaled.tobytes()).decode()


def _rewritten(records: Records, row: int, nfe: int, pieces: Pieces) -> dict[str, list[Any]]:
    """Positions that were written more than once (by policies that edit, or take tokens back): each
    write's step, text and confidence, in order. A token that was taken back has no text."""
    obs, action, edits = records.obs, records.action, records.action.edit
    if edits is None and action.take_back is None:
        return {}
    current: dict[int, int] = {}
    writes: dict[str, list[Any]] = {}
    for step in range(nfe):
        candidates = np.asarray(obs.candidate[step, row])
        masked = np.asarray(obs.masked[step, row])
        fill = np.asarray(action.fill[step, row]) & np.asarray(obs.legal[step, row])
        if edits is not None:
            fill = fill | (np.asarray(edits[step, row]) & ~masked)
        for position in np.flatnonzero(fill).tolist():
            token = int(candidates[position])
            if current.get(position) != token:
                current[position] = token
                confidence = float(f"{obs.confidence[step, row, position]:.4g}")
                write = [step, pieces([token])[0], confidence]
                writes.setdefault(str(position), []).append(write)
        if step + 1 < nfe:
            for position in np.flatnonzero(
                ~masked & np.asarray(obs.masked[step + 1, row])
            ).tolist():
                current.pop(position, None)
                writes.setdefault(str(position), []).append([step, None, 0.0])
    return {position: made for position, made in writes.items() if len(made) > 1}


def _changes(candidates: np.ndarray, masked: np.ndarray) -> tuple[list[int], list[list[int]]]:
    """Candidates as what changes from step to step: most of them stay.

    Returns:
        (tokens, per step a flat list of position, index into tokens, position, ...).
    """
    vocabulary: dict[int, int] = {}
    before = np.full(candidates.shape[-1], -1)
    changes = []
    for now, is_masked in zip(candidates, masked, strict=True):
        flat: list[int] = []
        for position in np.flatnonzero(is_masked & (now != before)).tolist():
            token = int(now[position])
            flat += [position, vocabulary.setdefault(token, len(vocabulary))]
        changes.append(flat)
        before = np.where(is_masked, now, before)
    return list(vocabulary), changes
