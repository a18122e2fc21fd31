"""Effects of narrower weights: `python docs/quantization/compare.py --model=sudoku`.

Prints, for every type of the weights, what they take, how far the denoiser's predictions move on
canvases at every stage of decoding, and what becomes of the decoded answers.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_unmask import denoisers, policies, tasks
from jax_unmask.commands import command_line
from jax_unmask.denoisers.quantization import TYPES
from jax_unmask.environment.bundle import load_model
from jax_unmask.evaluation.measure import measure
from jax_unmask.rollout import RolloutSettings
from jax_unmask.runtime import compilation
from jax_unmask.shipped import shipped_lengths, shipped_models

# Weights and computation, and what the layers' matrices are stored in.
VARIANTS = (
    ("float32", None),
    ("bfloat16", None),
    *(("float32", kind) for kind in TYPES),
    *(("bfloat16", kind) for kind in TYPES),
)
_SPLIT: Any = "test"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    described = argparse.ArgumentParser(prog="python docs/quantization/compare.py")
    add = described.add_argument
    add("--model", choices=shipped_models(), required=True, help="a shipped model, on its own task")
    add("--block_length", type=int, help="default: that of the shipped model")
    add("--policy", default="threshold:threshold=0.9", help="default: %(default)s")
    add("--problems", type=int, default=1000, help="of the test split; default: %(default)s")
    return described


def compare(
    model: str, policy: str, problems: int, block_length: int | None = None
) -> list[dict[str, Any]]:
    """One row per variant; the first is what the others are compared with.

    Args:
        model: a shipped model.
        policy: in the notation of `policies.parse_policy`.
        problems: how many of its task's test problems are decoded. Predictions are compared on
            their answers, each with a random part masked out.
        block_length: that of decoding; None for what the model was trained for.
    """
    _, length, block = shipped_lengths(model)
    block = block if block_length is None else block_length
    settings = RolloutSettings(gen_length=length, block_length=block)
    task = tasks.create(model)
    source = task.source(_SPLIT)
    if not 1 <= problems <= len(source):
        raise ValueError(f"--problems={problems} must lie in [1, {len(source)}]")
    examples = [source[index] for index in range(problems)]
    chosen, params = policies.parse_policy(policy)
    rows: list[dict[str, Any]] = []
    exact: Float[Array, "n L V"] | None = None
    answers: list[str] = []
    canvases: np.ndarray | None = None
    for dtype, kind in VARIANTS:
        denoiser, weights, tokenizer = load_model(
            model, dtype=dtype, param_dtype=dtype, quantization=kind
        )
        encoded = [tokenizer.encode_prompt(task.prompt(example)) for example in examples]
        prompts = tokenizer.pad_prompts(encoded, max(map(len, encoded)))
        found = measure(
            denoiser,
            weights,
            tokenizer,
            task,
            examples,
            prompts,
            chosen,
            params,
            settings,
            seed=0,
            batch_size=128,
        )
        if canvases is None:
            canvases = _masked(tokenizer, found.responses, length)
            answers = found.responses
        log_probs = _log_probs(denoiser, weights, prompts, canvases)
        exact = log_probs if exact is None else exact
        masked = canvases == tokenizer.mask_id
        summary = found.summary()
        rows.append(
            {
                "weights": dtype if kind is None else f"{kind}, rest {dtype}",
                "bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(weights)),
                "kl": float(_divergence(exact, log_probs)[masked].mean()),
                "same": float((exact.argmax(-1) == log_probs.argmax(-1))[masked].mean()),
                "accuracy": summary["accuracy"],
                "accuracy_se": summary["accuracy_se"],
                "nfe": summary["nfe_mean"],
                "same_answers": float(np.mean(np.array(found.responses) == np.array(answers))),
            }
        )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| weights | bytes | KL to float32 (nats) | same best token | accuracy | NFE "
        "| same answer |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {row['weights']} | {row['bytes']:,} | {row['kl']:.2e} | {100 * row['same']:.2f} | "
        f"{100 * row['accuracy']:.1f} ± {100 * row['accuracy_se']:.1f} | {row['nfe']:.2f} | "
        f"{100 * row['same_answers']:.1f} |"
        for row in rows
    ]
    return "\n".join(lines)


def _masked(tokenizer: denoisers.Tokenizer, answers: Sequence[str], length: int) -> np.ndarray:
    """Answers with a share of their tokens masked that is uniform in (0, 1]."""
    random = np.random.default_rng(0)
    canvases = np.full((len(answers), length), tokenizer.eos_id, np.int32)
    for row, answer in enumerate(answers):
        tokens = tokenizer.encode(answer)[:length]
        canvases[row, : len(tokens)] = tokens
    hidden = random.random(canvases.shape) < random.random((len(answers), 1))
    hidden[:, 0] = True
    return np.where(hidden, tokenizer.mask_id, canvases)


def _log_probs(
    denoiser: denoisers.Denoiser, params: Any, prompts: Any, canvases: np.ndarray
) -> Float[Array, "n L V"]:
    tokens = np.concatenate([prompts.tokens, canvases], axis=1)
    mask = np.concatenate([prompts.mask, np.ones(canvases.shape, bool)], axis=1)
    logits = jax.jit(denoiser.apply)({"params": params}, tokens, mask)[:, -canvases.shape[1] :]
    # The mask token is never a candidate.
    logits = logits.at[..., denoiser.config.mask_token_id].set(-jnp.inf)
    return jax.nn.log_softmax(logits)


def _divergence(
    exact: Float[Array, "n L V"], near: Float[Array, "n L V"]
) -> Float[np.ndarray, "n L"]:
    probs = jnp.exp(exact)
    return np.asarray(jnp.where(probs > 0, probs * (exact - near), 0.0).sum(axis=-1))


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    args = parser().parse_args(arguments)
    command_line.set_up_logging()
    compilation.enable_cache()
    with command_line.clear_errors():
        sys.stdout.write(
            table(compare(args.model, args.policy, args.problems, args.block_length)) + "\n"
        )


if __name__ == "__main__":
    main()
