"""Rollouts of two checkouts, taken in turns: what one takes of the time of the other.

    python docs/benchmarks/versions.py BEFORE NOW [ROUNDS]

The shipped Sudoku model, one token per step in blocks of 4, random prompts. Each checkout has a
process of its own, and both must give the same tokens. Times are medians for a rollout; the ratio
is the median of neighbours, with its quartiles.
"""

import os
import subprocess
import sys
import time

import numpy as np

ROWS = {1: 8, 8: 8, 64: 2}  # With the rollouts of a turn.


def serve() -> None:
    """For each line with a number of rows: processor and wall seconds of the rollouts of a turn."""
    import jax

    from jax_unmask import denoisers, policies
    from jax_unmask.rollout import Prompts, RolloutSettings, rollout, row_keys
    from jax_unmask.shipped import resolve_model

    denoiser, params, *_ = denoisers.from_pretrained(resolve_model("sudoku"))
    policy, told = policies.parse_policy("top_confidence:tokens_per_step=1")
    settings = RolloutSettings(gen_length=16, block_length=4)
    for line in sys.stdin:
        rows = int(line)
        tokens = np.random.default_rng(0).integers(1, 6, (rows, 17)).astype(np.int32)
        prompts = Prompts(tokens=tokens, mask=np.ones_like(tokens, bool))
        keys = row_keys(jax.random.key(1), rows)
        own, wall = time.process_time(), time.perf_counter()
        for _ in range(ROWS[rows]):
            done = jax.block_until_ready(
                rollout(denoiser, params, policy, told, prompts, keys, settings)
            )
        own, wall = time.process_time() - own, time.perf_counter() - wall
        print(
            own,
            wall,
            int(np.vdot(done.tokens, np.arange(done.tokens.size).reshape(rows, -1))),
            flush=True,
        )


def start(checkout: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, os.path.abspath(__file__)],
        env=os.environ | {"PYTHONPATH": os.path.abspath(checkout)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def ask(process: subprocess.Popen, rows: int) -> list[float]:
    print(rows, file=process.stdin, flush=True)
    return [float(each) for each in process.stdout.readline().split()]


def main(before: str, now: str, rounds: str = "80") -> None:
    processes = [start(before), start(now)]
    for rows in ROWS:
        assert ask(processes[0], rows)[2] == ask(processes[1], rows)[2], "other tokens"
        order = [processes, processes[::-1]]
        turns = [[ask(each, rows)[:2] for each in order[turn % 2]] for turn in range(int(rounds))]
        found = np.array([pair if turn % 2 == 0 else pair[::-1] for turn, pair in enumerate(turns)])
        for kind, (first, second) in zip(
            ("processor", "wall"), found.transpose(2, 1, 0), strict=True
        ):
            low, middle, high = np.quantile(second / first, (0.25, 0.5, 0.75))
            medians = 1e3 * np.median(first) / ROWS[rows], 1e3 * np.median(second) / ROWS[rows]
            print(f"{rows:3} rows, {kind:9} ms: {medians[0]:6.1f}, {medians[1]:6.1f}", end="  ")
            print(f"ratio {middle:.3f} [{low:.3f}, {high:.3f}]", flush=True)
    for each in processes:
        each.communicate()


if __name__ == "__main__":
    main(*sys.argv[1:]) if sys.argv[1:] else serve()
