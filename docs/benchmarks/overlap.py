"""Time saved by overlapping checks and rollouts, and by prompt buckets.

    python docs/benchmarks/overlap.py [--repeats=5] [--workers=8]

First, training steps on worked arithmetic in 1, 2 and 4 batches. Checks wait, as those do that ask
a server or run programs on other cores, and all of a step take as long as its rollouts alone. Then
rollouts of prompts of many lengths, padded to the longest of all or to the nearest of a few
lengths. Everything that is compared runs in turns within one process, and numbers are medians, so
that what else the machine does hits all alike.
"""

import argparse
import concurrent.futures
import functools
import pathlib
import runpy
import statistics
import tempfile
import time

import jax
import numpy as np

from jax_unmask import denoisers, policies, recipes
from jax_unmask.evaluation import measure
from jax_unmask.rollout import RolloutSettings, trimmed
from jax_unmask.runtime.placement import Placement
from jax_unmask.runtime.progress import Timer
from jax_unmask.tasks.arithmetic import Arithmetic

ROOT = pathlib.Path(__file__).parents[2]
BATCHES = (1, 2, 4)
PROMPTS, GROUP = 16, 8
BUCKETS = (32, 64, 96)
BUDGET, CANVAS = 128, 32


class Waiting(Arithmetic):
    """Worked arithmetic whose checks take `wait` seconds each, `workers` at one time."""

    wait = 0.0

    def __init__(self, workers: int) -> None:
        super().__init__()
        self._workers = concurrent.futures.ThreadPoolExecutor(workers)

    def _slow(self, example, response):
        time.sleep(Waiting.wait)
        return self.check(example, response)

    def start_checks(self, examples, responses):
        pairs = zip(examples, responses, strict=True)
        started = [self._workers.submit(self._slow, *pair) for pair in pairs]
        return lambda: [each.result() for each in started]

    def check_batch(self, examples, responses):
        return self.start_checks(examples, responses)()


class Stories(Arithmetic):
    """A story behind up to eleven others: prompts of 8 to 128 tokens."""

    def prompt(self, example):
        others = self.source("train")
        number = sum(map(ord, example["prompt"])) % 12
        before = [others[number * 100 + k]["prompt"] for k in range(number)]
        return "".join([*before, example["prompt"]])


def make_recipe(name, batches, workers, directory):
    make = runpy.run_path(str(ROOT / "configs" / name))["get_config"]
    config = make("arithmetic" if name == "tiny_policy.py" else "full")
    config.task.update(name=f"{__name__}.Waiting", settings=(f"workers={workers}",))
    config.rollout.update(prompts_per_step=PROMPTS, group_size=GROUP, slots=32, batches=batches)
    if "expert" in config:
        config.expert.count = 0
    config.eval.after_training = False
    return recipes.find(config.recipe)(recipes.read(config), directory)


def overlap(repeats, workers):
    print("| training | batches | s per step | rollout and checks | ratio |\n|---|--:|--:|--:|--:|")
    for title, name in (("policy GRPO", "tiny_policy.py"), ("TraceRL", "tracerl.py")):
        runs = {}
        for batches in BATCHES:
            directory = pathlib.Path(tempfile.mkdtemp())
            recipe = make_recipe(name, batches, workers, directory)
            runs[batches] = [recipe, recipe.data(), recipe.init(), []]
        rewards, alone, Waiting.wait = {}, [], 0.0
        # The first round compiles; the next two tell how long a rollout takes by itself.
        for repeat in range(-3, repeats):
            if repeat == 0:
                Waiting.wait = statistics.median(alone) * workers / (PROMPTS * GROUP)
            for run in runs.values():
                recipe, data, state, seconds = run
                timer, batch = Timer(), next(data)
                began = time.perf_counter()
                run[2], metrics = recipe.step(state, batch, timer)
                jax.block_until_ready(run[2].params)
                whole, phases = time.perf_counter() - began, timer.report()
                both = phases["seconds/rollout"] + phases["seconds/reward"]
                if repeat >= 0:
                    seconds.append((whole, both))
                elif repeat > -3:
                    alone.append(both)
                rewards.setdefault(repeat, set()).add(float(metrics["reward"]))
        assert all(len(each) == 1 for each in rewards.values()), "batches changed what was learned"
        base = None
        for batches, (*_, seconds) in runs.items():
            whole, both = (statistics.median(column) for column in zip(*seconds, strict=True))
            base = base or whole
            print(f"| {title} | {batches} | {whole:.2f} | {both:.2f} | {base / whole:.2f} |")


def buckets(repeats):
    tokenizer, task = denoisers.load_tokenizer("arithmetic"), Stories()
    config = denoisers.from_pretrained("arithmetic")[0].config
    sizes = {"hidden_size": 128, "num_layers": 4, "intermediate_size": 256, "head_dim": 32}
    config = denoisers.DenoiserConfig(**{**vars(config), **sizes, "max_length": BUDGET + CANVAS})
    params = denoisers.init_params(config, jax.random.key(0))
    policy, policy_params = policies.parse_policy("top_confidence:tokens_per_step=2")
    examples = [task.source("test")[k] for k in range(64)]
    encoded = [tokenizer.encode_prompt(task.prompt(example)) for example in examples]
    prompts = tokenizer.pad_prompts(encoded, BUDGET, truncate=True)
    run = functools.partial(
        measure.measure,
        *(denoisers.Denoiser(config), params, tokenizer, task, examples, prompts),
        *(policy, policy_params, RolloutSettings(CANVAS, CANVAS, temperature=1.0)),
        seed=0,
        batch_size=16,
        rows=16,
    )
    found = {(): [], BUCKETS: []}
    for _ in range(repeats):
        for ladder, several in found.items():
            several.append(run(buckets=ladder))
    plain, ladder = (several[0] for several in found.values())
    assert plain.responses == ladder.responses and (plain.nfe == ladder.nfe).all()
    lengths = np.asarray(prompts.mask).sum(axis=1)
    spread = f"{lengths.min()} to {lengths.max()} tokens, {lengths.mean():.0f} on average"
    print(f"\nPrompts of {spread}:\n")
    print("| buckets | s per 64 responses | useful forwards % | ratio |\n|---|--:|--:|--:|")
    seconds = [statistics.median(each.seconds for each in several) for several in found.values()]
    for text, one, several in zip(("none", f"{BUCKETS}"), seconds, found.values(), strict=True):
        useful = 100 * several[0].summary()["useful_forward_fraction"]
        print(f"| {text} | {one:.2f} | {useful:.0f} | {seconds[0] / one:.2f} |")
    rng = np.random.default_rng(0)
    for size in (4, 16):
        widths = []
        for _ in range(200):
            rows = rng.choice(len(examples), size, replace=False)
            batch = jax.tree.map(lambda x, rows=rows: x[rows], prompts)
            widths.append(trimmed(batch, BUCKETS, Placement()).tokens.shape[1])
        print(f"\nTraining, {size} prompts per step: padded to {np.mean(widths):.0f} on average.")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=8, help="checks at one time")
    args = parser.parse_args()
    overlap(args.repeats, args.workers)
    buckets(args.repeats)


if __name__ == "__main__":
    main()
