"""The animation at the top of the README: one Sudoku under three policies, forward by forward.

    python docs/animation.py --output=docs/canvas.webp

The three policies fill the same canvas with the same denoiser. Accuracy and forwards below each are
those of 1,000 test problems, from docs/experiments/sudoku/results.jsonl.
"""

import argparse
import io
import json
import pathlib

import jax
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from jax_unmask import denoisers, policies, rollout, tasks

HERE = pathlib.Path(__file__).parent
SIZE = 4
# Policy, heading, what names its rows in results.jsonl.
LANES = (
    (
        "top_confidence:tokens_per_step=1",
        "one cell per forward",
        ("top_confidence", {"tokens_per_step": 1.0}),
    ),
    ("threshold:threshold=0.9", "confidence above 0.9", ("threshold", {"threshold": 0.9})),
    (
        "learned:sudoku-seed0,alpha=1",
        "learned",
        ("sudoku", {"distribution": "threshold", "alpha": 1.0}),
    ),
)
NEW, OLD, GIVEN, EMPTY = "#c8102e", "#1b1f24", "#8a929c", "#f1f2f4"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, required=True, help="a .webp or .gif file")
    parser.add_argument("--problem", type=int, default=33, help="which test problem")
    args = parser.parse_args()
    problem, lanes = solve(args.problem)
    last = max(int(lane.max()) for _, lane in lanes) + 1
    frames = [draw(problem, lanes, step) for step in range(last + 1)]
    durations = [900, *([450] * (last - 1)), 2500]
    options = {"quality": 80, "method": 4} if args.output.suffix == ".webp" else {"optimize": True}
    frames[0].save(
        args.output, save_all=True, append_images=frames[1:], duration=durations, loop=0, **options
    )


def solve(index: int) -> tuple[str, list[tuple[str, np.ndarray]]]:
    """The problem, and of each lane the text and the step that filled each cell."""
    denoiser, params = denoisers.from_pretrained("sudoku")
    tokenizer, task = denoisers.load_tokenizer("sudoku"), tasks.create("sudoku")
    example = task.source("test")[index]
    prompts = tokenizer.pad_prompts([tokenizer.encode(task.prompt(example))], 17, truncate=False)
    shape = rollout.RolloutSettings(gen_length=SIZE * SIZE, block_length=SIZE * SIZE)
    lanes = []
    for text, _, _ in LANES:
        policy, settings = policies.parse_policy(text)
        keys = rollout.row_keys(jax.random.key(0), 1)
        out = rollout.rollout(denoiser, params, policy, settings, prompts, keys, shape)
        (response,) = tokenizer.decode_batch(np.asarray(out.tokens))
        assert task.check(example, response) == 1, f"{text} is wrong here; take another --problem"
        lanes.append((response, np.asarray(out.step_map)[0]))
    return str(task.prompt(example)), lanes


def measured(method: str, settings: dict[str, float | str]) -> str:
    """Accuracy and forwards of a policy in full diffusion, the mean over its training seeds."""
    rows = map(json.loads, (HERE / "experiments/sudoku/results.jsonl").read_text().splitlines())
    found = [
        row
        for row in rows
        if row["method"] == method
        and row["settings"] == settings
        and (row["split"], row["block_length"]) == ("test", SIZE * SIZE)
    ]
    accuracy, nfe = (np.mean([row[name] for row in found]) for name in ("accuracy", "nfe_mean"))
    return f"{100 * accuracy:.1f} % right in {nfe:.1f} forwards"


def draw(problem: str, lanes: list[tuple[str, np.ndarray]], step: int) -> Image.Image:
    """The canvases after so many forwards."""
    figure = Figure(figsize=(7.2, 3.1), dpi=100)
    for place, (text, steps) in enumerate(lanes):
        axis = figure.add_axes((0.02 + 0.33 * place, 0.17, 0.29, 0.65))
        axis.set_xlim(-0.03, SIZE + 0.03)
        axis.set_ylim(SIZE + 0.03, -0.03)
        axis.axis("off")
        axis.set_aspect("equal")
        for cell in range(SIZE * SIZE):
            x, y, is_filled = cell % SIZE, cell // SIZE, steps[cell] < step
            is_new, is_given = steps[cell] == step - 1, problem[cell] != "."
            box = {"edgecolor": "#c9ced6", "linewidth": 0.8}
            face = "#fbe3e6" if is_new else "white" if is_filled else EMPTY
            axis.add_patch(_rectangle(x, y, 1, facecolor=face, **box))
            colour = NEW if is_new else OLD if is_filled else GIVEN
            shown = text[cell] if is_filled else problem[cell] if is_given else ""
            axis.text(x + 0.5, y + 0.53, shown, ha="center", va="center", fontsize=17, color=colour)
        for x, y in ((0, 0), (0, 2), (2, 0), (2, 2)):
            axis.add_patch(_rectangle(x, y, 2, facecolor="none", edgecolor=OLD, linewidth=1.6))
        done = int(steps.max()) + 1
        _, heading, named = LANES[place]
        middle = 0.02 + 0.33 * place + 0.145
        figure.text(middle, 0.93, heading, ha="center", fontsize=12, weight="bold")
        count = f"forward {step}" if step < done else f"done after {done} forwards"
        colour = NEW if step >= done else GIVEN
        figure.text(middle, 0.855, count, ha="center", fontsize=10.5, color=colour)
        figure.text(middle, 0.06, measured(*named), ha="center", fontsize=10, color=OLD)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", facecolor="white")
    return Image.open(picture).convert("RGB")


def _rectangle(x: float, y: float, size: float, **style: object):
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), size, size, **style)


if __name__ == "__main__":
    main()
