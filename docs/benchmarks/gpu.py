"""Figures of gpu.sh beside published ones and our goals: `python docs/benchmarks/gpu.py OUT`.

Reads the records of the stages that ran, and writes OUT/table.md and OUT/table.json.
"""

import dataclasses
import json
import pathlib
import re
import sys

import jax.numpy as jnp

from jax_unmask.benchmarks import subjects
from jax_unmask.denoisers import count_params
from jax_unmask.report.tables import text_table
from jax_unmask.runtime.accelerators import ACCELERATORS
from jax_unmask.runtime.files import atomic_write

NFE = 162
"""Forwards of a row in the published run, on an H200 with the method's own code."""


@dataclasses.dataclass(frozen=True)
class Line:
    """A figure; `measured` is None where its stage gave none, `reached` where there is no goal."""

    figure: str
    published: str
    goal: str
    measured: float | None
    reached: bool | None = None


def table(folder: pathlib.Path) -> list[Line]:
    """All lines, in the order of the stages."""
    records = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    runs = {name: each["rollouts"][0] for name, each in records.items() if each.get("rollouts")}
    exact, dual, one = (runs.get(name) for name in ("exact", "dual", "latency"))
    lines: list[Line] = []

    def add(
        figure: str, published: str, goal: str, measured: float | None, is_floor: bool = True
    ) -> None:
        limit, reached = re.search(r"[\d.]+", goal), None
        if measured is not None and limit:
            reached = measured >= float(limit[0]) if is_floor else measured <= float(limit[0])
        lines.append(Line(figure, published, goal, measured, reached))

    def forward(run: dict | None) -> float | None:
        """Milliseconds of a forward, for each of its rows."""
        return run and 1e3 * run["seconds_per_forward"] / run["slots"]

    peak = None if exact is None else _peak(records["exact"])
    speed = exact and exact["tflops_per_second"]
    add("exact, 64 rows: TFLOP/s", "365", "", speed)
    add("of the peak, %", "37", "65", 100 * speed / peak if speed and peak else None)
    rate = exact and exact["tokens_per_second"] * exact["nfe_mean"] / NFE
    add(f"tokens/s at NFE {NFE}", "70", "145", rate)
    memory = None
    if exact and exact["program_bytes"]:
        config = subjects.find_preset(records["exact"]["model"]).config
        weights = count_params(config) * jnp.dtype(config.param_dtype).itemsize
        memory = (exact["program_bytes"] - weights) / exact["slots"] / 1e9
    add("GB per sequence beside the weights", "0.86 to 1.47", "0.2", memory, is_floor=False)
    faster = None
    if exact and dual:
        same = exact["seconds_per_rollout"] * dual["nfe_mean"] / exact["nfe_mean"]
        faster = same / dual["seconds_per_rollout"]
    nfe = "" if dual is None else f" at NFE {dual['nfe_mean']:.0f}"
    add(f"dual cache, 64 rows{nfe}: times as fast as exact", "", "5", faster)
    compared = records.get("public", {}).get("comparisons")
    than = compared and compared[0]["speedup_at_equal_nfe"]
    add("exact, 8 rows: times as fast as the public sampler", "", "2", than)
    nfe = "" if one is None else f" at NFE {one['nfe_mean']:.0f}"
    add(f"dual cache, 1 row{nfe}: ms per forward", "18.2", "8", forward(one), is_floor=False)
    add("exact, 64 rows: ms per forward and row", "18.4", "", forward(exact))
    add("the same in 8 slots", "", "", forward(runs.get("few-slots")))
    add("the same, int8", "", "", forward(runs.get("int8")))
    return lines


def _peak(record: dict) -> float:
    """TFLOP/s of the device's data sheet; of the fastest product measured, where there is none."""
    kind = record["environment"]["device"]
    known = [each.flops / 1e12 for each in ACCELERATORS if re.fullmatch(each.kind, kind)]
    return known[0] if known else record["matmul_peak"]["tflops_per_second"]


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    lines = table(folder)
    shown = [["figure", "published", "goal", "measured", "goal reached"]]
    for each in lines:
        measured = "-" if each.measured is None else f"{each.measured:.3g}"
        reached = {None: "", True: "yes", False: "no"}[each.reached]
        shown.append([each.figure, each.published, each.goal, measured, reached])
    heading = "| " + " | ".join(shown[0]) + " |\n" + "|---" * len(shown[0]) + "|\n"
    rows = "".join("| " + " | ".join(row) + " |\n" for row in shown[1:])
    atomic_write(folder / "table.md", heading + rows)
    found = [dataclasses.asdict(each) for each in lines]
    atomic_write(folder / "table.json", json.dumps(found, indent=1) + "\n")
    print(text_table(shown))


if __name__ == "__main__":
    main()
