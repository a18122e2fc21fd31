"""Programs per second in the sandbox of this tree beside that of another one, by turns.

`git worktree add /tmp/old COMMIT; python tests/tools/sandbox_speed.py /tmp/old DATA` runs
HumanEval's canonical solutions with all of their tests, DATA/humaneval, in two boxes each: what
else the machine does weighs on both alike, and the ratio counts.
"""

import os
import pathlib
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
ROUNDS = 12
_WORKER = """
import sys, time
from jax_unmask.tasks import sandbox
from jax_unmask.tasks.humaneval import HumanEval
task = HumanEval(sys.argv[1])
source = task.source("test")
examples = [source[index] for index in range(len(source))]
jobs = [task.job(example, task.target(example)) for example in examples]
with sandbox.Sandbox(2, limits=sandbox.Limits(cpu_seconds=10, wall_seconds=60.0)) as box:
    for _ in sys.stdin:
        began = time.perf_counter()
        assert all(each.right for each in box.run(jobs))
        print(len(jobs) / (time.perf_counter() - began), flush=True)
"""


def worker(tree: pathlib.Path, data: str) -> subprocess.Popen[str]:
    """A process that measures once for every line it gets."""
    return subprocess.Popen(
        [sys.executable, "-c", _WORKER, data],
        env=os.environ | {"PYTHONPATH": str(tree)},
        cwd=tree,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def main(other: str, data: str) -> None:
    """Runs the command."""
    workers = [worker(pathlib.Path(other), f"{data}/humaneval"), worker(ROOT, f"{data}/humaneval")]
    rates: tuple[list[float], list[float]] = ([], [])
    for number in range(ROUNDS + 1):
        for each, found in zip(workers, rates, strict=True):
            assert each.stdin is not None
            assert each.stdout is not None
            each.stdin.write("\n")
            each.stdin.flush()
            rate = float(each.stdout.readline())
            if number:  # The first time, boxes start.
                found.append(rate)
    ratios = [now / before for before, now in zip(*rates, strict=True)]
    before, now = map(statistics.median, rates)
    print(f"{before:.1f} there, {now:.1f} here, programs per second; medians of {ROUNDS}")
    low, high = min(ratios), max(ratios)
    print(f"ratio {statistics.median(ratios):.2f} (median of pairs, {low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main(*sys.argv[1:])
