"""Variance of the policy gradient with a value model and without, at the same parameters.

    python docs/experiments/tracerl/variance.py RUNS_DIR/tracerl-full/value-*

Each run was trained with `--config.value.enabled=True`. Its denoiser and its value model stay as
they were at the last checkpoint. The denoiser rolls out fresh batches, and each batch has two
gradients: one with the group's z-score as the advantage of every token, one with the advantages
that the value model makes of it. The variance of b gradients is sum |g - mean g|^2 / (b - 1). Per
run it prints the variance with the value model over that without, and the share of the returns'
variance that the values explain.
"""

import argparse
import dataclasses
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jax_unmask import policies, recipes, rollout
from jax_unmask.environment.bundle import load_bundle
from jax_unmask.learners.advantages import group_z_scores
from jax_unmask.learners.engine import TrainState
from jax_unmask.learners.states import Responses
from jax_unmask.recipes.tracerl import build_learner, build_settings
from jax_unmask.runtime.checkpoints import Checkpoints
from jax_unmask.tasks import data


def rolled_out(config, bundle, settings, params, batch, key):
    """Responses to a batch of prompts, their z-scores, and which count."""
    policy, policy_params = policies.parse_policy(config.rollout.policy)
    group = config.rollout.group_size
    prompts = jax.tree.map(lambda leaf: np.repeat(leaf, group, axis=0), batch.prompts)
    keys = rollout.row_keys(key, np.arange(len(prompts.tokens)))
    out = rollout.rollout(bundle.denoiser, params, policy, policy_params, prompts, keys, settings)
    examples = [example for example in batch.examples for _ in range(group)]
    correct = np.asarray(
        bundle.task.check_batch(examples, bundle.tokenizer.decode_batch(np.asarray(out.tokens))),
        np.float32,
    )
    rates = correct.reshape(-1, group).mean(axis=1)
    kept = config.filter.keeps(rates)
    responses = Responses(prompts=prompts, tokens=out.tokens, step_map=out.step_map)
    return responses, group_z_scores(correct, group).advantages, np.repeat(kept, group)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", type=pathlib.Path, nargs="+")
    parser.add_argument("--batches", type=int, default=12)
    args = parser.parse_args()
    config = runpy.run_path("configs/tracerl.py")["get_config"]("full")
    config.value.enabled = True
    config = recipes.read(config)
    bundle = load_bundle(config)
    ends = bundle.tokenizer.stop_ids
    settings = build_settings(config, bundle.denoiser.config, ends)
    # A step of size 1 along the gradient shows it; the value model stays as it is.
    learner = dataclasses.replace(
        build_learner(config, bundle.denoiser, ends), optimizer=optax.sgd(1.0)
    )
    value = dataclasses.replace(learner.value, optimizer=optax.sgd(0.0))
    learners = {
        "without": dataclasses.replace(learner, value=None),
        "with": dataclasses.replace(learner, value=value),
    }

    def gradient(name, params, responses, scores, kept, key):
        own = learners[name]
        trees = params if name == "with" else {"denoiser": params["denoiser"]}
        trees = jax.tree.map(jnp.copy, trees)
        opt_state = {tree: optax.sgd(1.0).init(trees[tree]) for tree in trees}
        state = TrainState(
            step=jnp.zeros((), jnp.int32), params=trees, opt_state=opt_state, key=jnp.copy(key)
        )
        state, metrics = own.update(state, responses, jnp.asarray(scores), jnp.asarray(kept))
        moved = jax.tree.map(
            lambda old, new: np.asarray(old - new, np.float64).ravel(),
            params["denoiser"],
            state.params["denoiser"],
        )
        return np.concatenate(jax.tree.leaves(moved)), metrics

    print("| run | batches | variance of the gradient, with / without | returns explained, % |")
    print("|---|--:|--:|--:|")
    for run in args.runs:
        with Checkpoints(run, read_only=True) as checkpoints:
            _, params = checkpoints.restore_params()
        batch_settings = data.BatchSettings(
            batch_size=config.rollout.prompts_per_step,
            prompt_length=config.task.prompt_length,
            seed=1_000,  # Problems that the run has not seen in this order.
        )
        batches = data.batches(bundle.task, "train", bundle.tokenizer, batch_settings)
        found = {name: [] for name in learners}
        errors = []
        for number in range(args.batches):
            key = jax.random.fold_in(jax.random.key(7), number)
            responses, scores, kept = rolled_out(
                config, bundle, settings, params["denoiser"], next(batches), key
            )
            if not kept.any():
                continue
            for name in learners:
                vector, metrics = gradient(name, params, responses, scores, kept, key)
                found[name].append(vector)
                if name == "with":
                    errors.append((metrics["value_error"], metrics["return_deviation"]))
        variance = {
            name: np.square(np.stack(vectors) - np.mean(vectors, axis=0)).sum()
            for name, vectors in found.items()
        }
        error, deviation = np.square(errors).mean(axis=0)
        print(
            f"| {run.name} | {len(errors)} | {variance['with'] / variance['without']:.3f} "
            f"| {100 * (1 - error / deviation):.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
