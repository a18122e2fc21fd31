"""Subjects of a benchmark: a denoiser (trained, or random weights of a known shape) and prompts."""

from __future__ import annotations

import dataclasses
import difflib

import numpy as np

from jax_unmask import denoisers, tasks
from jax_unmask.denoisers import Denoiser, DenoiserConfig, Params, Tokenizer
from jax_unmask.environment.bundle import load_model
from jax_unmask.rollout import Prompts
from jax_unmask.runtime import streams


@dataclasses.dataclass(frozen=True)
class Preset:
    """A shape that is timed with random weights.

    Attributes:
        config: the denoiser.
        prompt_length: usual number of prompt tokens.
        gen_length: usual canvas length.
        block_length: usual block length.
    """

    config: DenoiserConfig
    prompt_length: int
    gen_length: int
    block_length: int


@dataclasses.dataclass(frozen=True)
class Subject:
    """A denoiser to time.

    Attributes:
        name: what tables call it.
        denoiser: the dLLM.
        params: its parameters.
        tokenizer: its tokenizer; None with random weights, or where none was needed.
    """

    name: str
    denoiser: Denoiser
    params: Params
    tokenizer: Tokenizer | None = None


def _llada(
    dtype: str,
    vocab: int,
    special: tuple[int, int, int],
    width: int,
    layers: int,
    heads: int,
    mlp: int,
) -> DenoiserConfig:
    mask, eos, bos = special
    return DenoiserConfig(
        family="llada",
        vocab_size=vocab,
        hidden_size=width,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=width // heads,
        intermediate_size=mlp,
        rope_theta=500000.0,
        norm_eps=1e-5,
        max_length=4096,
        tie_embeddings=False,
        mask_token_id=mask,
        eos_token_id=eos,
        pad_token_id=eos,
        bos_token_id=bos,
        dtype=dtype,
        param_dtype=dtype,
    )


PRESETS = {
    # GSAI-ML/LLaDA-8B-Instruct, with the lengths of Jazbec et al. (arXiv 2512.09106).
    "llada-8b": Preset(
        _llada("bfloat16", 126464, (126336, 126081, 126080), 4096, 32, 32, 12288), 200, 256, 32
    ),
    # 98M parameters in the same proportions, with a smaller vocabulary, which would dominate
    # otherwise.
    "llada-100m": Preset(_llada("float32", 8192, (2, 1, 0), 768, 12, 12, 2048), 64, 128, 32),
    # The size of the small models that ship with the package.
    "tiny": Preset(_llada("float32", 106, (2, 1, 0), 64, 3, 4, 176), 21, 40, 8),
}


def find_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in PRESETS:
        close = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"--preset={name} is unknown; {hint}choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


def random_subject(name: str, config: DenoiserConfig, *, seed: int) -> Subject:
    """A denoiser with random weights that never proposes the mask token.

    Its logit is 0 everywhere, which is never the largest. Published samplers may write the mask
    token, and then waste a step; against such weights they and ours do the same work.

    Args:
        name: what tables call it.
        config: the shape, with untied embeddings.
        seed: seed of the weights.
    """
    params = denoisers.init_params(config, streams.stream(streams.root(seed), "init"))
    params["head"] = params["head"].at[config.mask_token_id].set(0)
    return Subject(name, Denoiser(config), params)


def load_subject(path: str, dtype: str | None, *, with_tokenizer: bool) -> Subject:
    """A denoiser from files.

    Args:
        path: a shipped model, a directory, or a hub name.
        dtype: type of weights and computation; None for that of the files.
        with_tokenizer: whether the tokenizer is needed too.
    """
    if with_tokenizer:
        denoiser, params, tokenizer = load_model(path, dtype=dtype, param_dtype=dtype)
        return Subject(path, denoiser, params, tokenizer)
    denoiser, params = denoisers.from_pretrained(path, dtype=dtype, param_dtype=dtype)
    return Subject(path, denoiser, params)


def random_prompts(config: DenoiserConfig, count: int, length: int, *, seed: int) -> Prompts:
    """Prompts of `length` uniform ordinary tokens, without padding: NumPy arrays [count, length].

    Raises:
        ValueError: the vocabulary holds nothing but special tokens.
    """
    special = {
        config.mask_token_id,
        config.eos_token_id,
        config.pad_token_id,
        config.bos_token_id,
    }
    ordinary = np.array([k for k in range(config.vocab_size) if k not in special], np.int32)
    if not len(ordinary):
        raise ValueError(f"vocab_size={config.vocab_size} leaves no ordinary token for a prompt")
    tokens = np.random.default_rng(seed).choice(ordinary, (count, length))
    return Prompts(tokens=tokens, mask=np.ones(tokens.shape, bool))  # type: ignore[arg-type]


def task_prompts(
    name: str, tokenizer: Tokenizer, count: int, length: int | None, *, data: str | None = None
) -> Prompts:
    """The first test prompts of a task, over again where it has fewer.

    Args:
        name: in the notation of `tasks.parse`.
        tokenizer: makes them tokens.
        count: how many.
        length: length that they are padded to on the left; None for that of the longest.
        data: directory of the data, for tasks that read files.

    Returns:
        NumPy arrays [count, length].

    Raises:
        ValueError: the task is unknown, or a prompt is longer than `length`.
    """
    task = tasks.parse(name, data)
    source = task.source("test")
    examples = [source[k % len(source)] for k in range(count)]
    prompts = [tokenizer.encode_prompt(task.prompt(example)) for example in examples]
    longest = max(map(len, prompts))
    return tokenizer.pad_prompts(prompts, longest if length is None else length, truncate=False)
