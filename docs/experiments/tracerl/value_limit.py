"""How much of a return any value model can explain, and how much one learns from frozen rollouts.

    python docs/experiments/tracerl/value_limit.py

The denoiser that `configs/tracerl.py:full` starts from writes responses and stays as it is. The
value of a half-filled canvas is the share of its continuations that are right; here it is measured,
by continuing each canvas many times. A return is a response's z-score in its group. Printed are

* the share of the returns' variance that exact values explain, by how much of the response stands;
* the variance of the policy's gradient with exact values as the baseline, over that without;
* the same share for values that were learned from other responses of the frozen denoiser: by a copy
  of the denoiser (as published), or by a head on the denoiser's own features.
"""

import argparse
import functools
import runpy
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jax_unmask import policies, recipes, rollout
from jax_unmask.environment.bundle import load_bundle
from jax_unmask.learners.states import (
    canvas_hidden,
    merged_steps,
    trainable_tokens,
)
from jax_unmask.learners.surrogates import States
from jax_unmask.recipes.tracerl import build_settings
from jax_unmask.tasks import data


class Written(NamedTuple):
    """A batch of responses: B rows, S states of each (the first ones that it has)."""

    prompts: object
    tokens: jax.Array  # int [B, L]
    right: np.ndarray  # float [B]
    z: np.ndarray  # float [B], 0 in groups that are left out
    deviation: np.ndarray  # float [B], of the group; 1 in groups that are left out
    kept: np.ndarray  # bool [B]
    masked: jax.Array  # bool [S, B, L]
    trained: jax.Array  # bool [S, B, L]


class Study:
    def __init__(self):
        config = recipes.read(runpy.run_path("configs/tracerl.py")["get_config"]("full"))
        self.config, self.bundle = config, load_bundle(config)
        self.denoiser, self.params = self.bundle.denoiser, self.bundle.params
        shape = self.denoiser.config
        self.ends = self.bundle.tokenizer.stop_ids
        self.settings = build_settings(config, shape, self.ends)
        self.count = 4  # States of a row that are looked at; hardly any has more.
        self.policy, self.policy_params = policies.parse_policy(config.rollout.policy)
        settings = data.BatchSettings(
            batch_size=config.rollout.prompts_per_step,
            prompt_length=config.task.prompt_length,
            seed=1_000,
        )
        self.batches = data.batches(self.bundle.task, "train", self.bundle.tokenizer, settings)

    def scores(self, examples, tokens):
        texts = self.bundle.tokenizer.decode_batch(np.asarray(tokens))
        return np.asarray(self.bundle.task.check_batch(examples, texts), np.float32)

    def write(self, number):
        """The next batch of responses."""
        batch, group = next(self.batches), self.config.rollout.group_size
        prompts = jax.tree.map(lambda leaf: np.repeat(leaf, group, axis=0), batch.prompts)
        keys = rollout.row_keys(jax.random.key(number), np.arange(len(prompts.tokens)))
        out = rollout.rollout(
            self.denoiser,
            self.params,
            self.policy,
            self.policy_params,
            prompts,
            keys,
            self.settings,
        )
        self.examples = [example for example in batch.examples for _ in range(group)]
        right = self.scores(self.examples, out.tokens)
        grouped = right.reshape(-1, group)
        deviation = np.repeat(grouped.std(axis=1), group)
        kept = np.repeat(self.config.filter.keeps(grouped.mean(axis=1)), group)
        deviation = np.where(kept, deviation, 1.0)
        z = np.where(kept, (right - np.repeat(grouped.mean(axis=1), group)) / deviation, 0.0)
        step, _ = merged_steps(out.step_map, self.config.learner.shrink)
        pad_id = self.denoiser.config.pad_token_id
        counted = trainable_tokens(out.tokens, out.step_map, pad_id, 1, self.ends)
        at = jnp.arange(self.count)[:, None, None]
        trained = (step == at) & counted
        return Written(prompts, out.tokens, right, z, deviation, kept, step >= at, trained)

    @functools.partial(jax.jit, static_argnums=0)
    def finish(self, prompts, tokens, key):
        """Goes on from half-filled canvases as the rollout does: a threshold, at temperature 1."""
        shape, threshold = self.denoiser.config, self.policy_params["threshold"]
        mask_id = shape.mask_token_id
        real = jnp.concatenate([prompts.mask, jnp.ones(tokens.shape, bool)], axis=1)
        length = tokens.shape[1]

        def step(carry):
            tokens, key = carry
            key, own = jax.random.split(key)
            text = jnp.concatenate([prompts.tokens, tokens], axis=1)
            logits = self.denoiser.apply({"params": self.params}, text, attention_mask=real)
            logits = logits[:, -length:].at[..., mask_id].set(-jnp.inf)
            drawn = jax.random.categorical(own, logits, axis=-1)
            log_p = jax.nn.log_softmax(logits)
            confidence = jnp.exp(jnp.take_along_axis(log_p, drawn[..., None], -1)[..., 0])
            masked = tokens == mask_id
            confidence = jnp.where(masked, confidence, -1.0)
            best = jnp.arange(length) == jnp.argmax(confidence, axis=1)[:, None]
            fill = masked & ((confidence > threshold) | best)
            return jnp.where(fill, drawn, tokens), key

        def has_masks(carry):
            return jnp.any(carry[0] == mask_id)

        return jax.lax.while_loop(has_masks, step, (tokens, key))[0]

    def values(self, written, repeats, key):
        """Share of right continuations of each state, [S, B]."""
        found = []
        mask_id = self.denoiser.config.mask_token_id
        for number in range(self.count):
            start = jnp.where(written.masked[number], mask_id, written.tokens)
            share = np.zeros(len(written.right))
            for repeat in range(repeats):
                own = jax.random.fold_in(key, number * repeats + repeat)
                share += self.scores(self.examples, self.finish(written.prompts, start, own))
            found.append(share / repeats)
        return np.stack(found)

    @functools.partial(jax.jit, static_argnums=0)
    def gradient(self, written, advantages):
        """The policy's gradient on a batch; advantages [S, B]."""

        def loss(params):
            def of_state(at):
                masked, trained, advantage = at
                states = States(masked=masked, trained=trained)
                text = (written.prompts, written.tokens)
                hidden = canvas_hidden(self.denoiser, params, *text, states)
                logits = self.denoiser.apply({"params": params}, hidden, method="logits")
                log_p = jax.nn.log_softmax(logits)
                log_p = jnp.take_along_axis(log_p, written.tokens[..., None], -1)[..., 0]
                per_row = jnp.sum(jnp.where(trained, log_p, 0.0), axis=-1)
                return jnp.sum(advantage * per_row / jnp.maximum(jnp.sum(trained, axis=-1), 1))

            return jnp.sum(jax.lax.map(of_state, (written.masked, written.trained, advantages)))

        grads = jax.tree.leaves(jax.grad(loss)(self.params))
        return jnp.concatenate([leaf.ravel() for leaf in grads])

    # Learned values.

    def learn(self, kind, batches, epochs, lr, target):
        """Values learned from batches, as a function of a batch: [S, B, L]."""
        width = self.denoiser.config.hidden_size
        keys = jax.random.split(jax.random.key(0))
        params = {"out": jnp.zeros(width)}
        if kind == "copy":
            params["backbone"] = self.params
        if kind == "mlp":
            params["in"] = jax.random.normal(keys[0], (width, 4 * width)) / np.sqrt(width)
            params["bias"] = jnp.zeros(4 * width)
            params["out"] = jnp.zeros(4 * width)
        if target == "right":
            params["mean"] = jnp.array(0.5)

        def of_state(params, written, masked, trained):
            trunk = params.get("backbone", self.params)
            states = States(masked=masked, trained=trained)
            hidden = canvas_hidden(self.denoiser, trunk, written.prompts, written.tokens, states)
            if kind == "mlp":
                hidden = jax.nn.gelu(hidden @ params["in"] + params["bias"])
            return hidden @ params["out"] + params.get("mean", 0.0)

        def loss(params, written):
            goal = written.right if target == "right" else written.z
            weight = written.trained & written.kept[:, None]

            def add(total, at):
                masked, trained, weight = at
                values = of_state(params, written, masked, trained)
                return total + jnp.sum(weight * jnp.square(values - goal[:, None])), None

            total, _ = jax.lax.scan(add, 0.0, (written.masked, written.trained, weight))
            return total / jnp.maximum(jnp.sum(weight), 1)

        steps = epochs * len(batches)
        optimizer = optax.adamw(optax.cosine_decay_schedule(lr, steps), weight_decay=0.01)

        @jax.jit
        def update(params, state, written):
            grads = jax.grad(loss)(params, written)
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        state = optimizer.init(params)
        order = np.random.default_rng(0)
        for _ in range(epochs):
            for index in order.permutation(len(batches)):
                params, state = update(params, state, batches[index])

        @jax.jit
        def values(written):
            def of(at):
                return of_state(params, written, *at)

            return jax.lax.map(of, (written.masked, written.trained))

        return values


def explained(held_out, values, target):
    """1 - mean square of (return - value) / that of the return; tokens count alike."""
    error = total = 0.0
    for written, value in zip(held_out, values, strict=True):
        weight = np.asarray(written.trained & written.kept[:, None], np.float64)
        z, scale = written.z[:, None], written.deviation[:, None]
        left = z - value if target == "z" else (written.right[:, None] - value) / scale
        error += np.sum(weight * np.square(left))
        total += np.sum(weight * np.square(z))
    return 100 * (1 - error / total)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--continuations", type=int, default=16)
    parser.add_argument("--training_batches", type=int, default=60)
    args = parser.parse_args()
    study = Study()

    # 1. Exact values. Over K continuations they scatter, which raises the square of the error
    # by (1 + 1/K): a continuation and the response itself are independent given the canvas.
    noise = 1 + 1 / args.continuations
    held_out, gradients = [], {"without": [], "with": []}
    errors, totals = np.zeros(study.count), np.zeros(study.count)
    for number in range(args.batches):
        written = study.write(number)
        held_out.append(written)
        values = study.values(written, args.continuations, jax.random.key(1_000 + number))
        weight = np.sum(np.asarray(written.trained), axis=-1) * written.kept
        left = (written.right - values) / written.deviation
        errors += np.sum(weight * np.square(left), axis=1) / noise
        totals += np.sum(weight * np.square(written.z), axis=1)
        for name, advantages in (
            ("without", np.broadcast_to(written.z, left.shape)),
            ("with", left),
        ):
            gradients[name].append(study.gradient(written, jnp.asarray(advantages * written.kept)))
    print(f"explained by exact values: {100 * (1 - errors.sum() / totals.sum()):.1f} %; by state:")
    for number, (error, total) in enumerate(zip(errors, totals, strict=True)):
        if total:
            share = 100 * total / totals.sum()
            print(
                f"  state {number}: {100 * (1 - error / total):.1f} % ({share:.0f} % of the tokens)"
            )
    variance = {
        name: np.square(np.stack(each) - np.mean(each, axis=0)).sum()
        for name, each in gradients.items()
    }
    norm = np.square(np.mean(gradients["without"], axis=0)).sum() * args.batches
    print(f"variance of the gradient, exact / none: {variance['with'] / variance['without']:.3f}")
    share = variance["without"] / (args.batches - 1) * args.batches / norm
    print(f"variance of a batch's gradient over the square of the mean: {share:.2f}", flush=True)

    # 2. Learned values.
    batches = [study.write(10_000 + number) for number in range(args.training_batches)]
    for kind, lr in (("head", 1e-2), ("mlp", 2e-3), ("copy", 3e-4)):
        for target in ("z", "right"):
            for epochs in (1, 4):
                values = study.learn(kind, batches, epochs, lr, target)
                found = explained(held_out, map(values, held_out), target)
                print(f"{kind}, target {target}, {epochs} epochs: {found:.1f} %", flush=True)


if __name__ == "__main__":
    main()
