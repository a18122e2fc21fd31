"""Subjects of a benchmark: a denoiser (trained, or random weights of a known shape) and prompts."""

import dataclasses
from typing import Any

import numpy as np

from jax_unmask import denoisers, tasks
from jax_unmask.denoisers import Denoiser, DenoiserConfig, Params, Tokenizer, families
from jax_unmask.denoisers.families.base import TOKENS
from jax_unmask.environment.bundle import load_model
from jax_unmask.notation import suggestion
from jax_unmask.rollout import Prompts
from jax_unmask.runtime import streams


@dataclasses.dataclass(frozen=True)
class Preset:
    """A shape that is timed with random weights, and its usual lengths."""

    config: DenoiserConfig
    prompt_length: int
    gen_length: int
    block_length: int


@dataclasses.dataclass(frozen=True)
class Subject:
    """A denoiser to time, by the name that tables give it; with random weights, no tokenizer."""

    name: str
    denoiser: Denoiser
    params: Params
    tokenizer: Tokenizer | None = None


_LLADA_8B = families.published_config("GSAI-ML/LLaDA-8B-Instruct")


def small_llada(vocab: int, width: int, layers: int, heads: int, mlp: int) -> DenoiserConfig:
    """A smaller LLaDA, float32."""
    return dataclasses.replace(
        _LLADA_8B,
        vocab_size=vocab,
        hidden_size=width,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=width // heads,
        intermediate_size=mlp,
        mask_token_id=2,
        eos_token_id=1,
        pad_token_id=1,
        bos_token_id=0,
    )


PRESETS = {
    # With the lengths of Jazbec et al. (arXiv 2512.09106).
    "llada-8b": Preset(
        dataclasses.replace(_LLADA_8B, dtype="bfloat16", param_dtype="bfloat16"), 200, 256, 32
    ),
    # 98M parameters in the same proportions, with a smaller vocabulary, which would dominate
    # otherwise.
    "llada-100m": Preset(small_llada(8192, 768, 12, 12, 2048), 64, 128, 32),
    # The size of the small models that ship with the package.
    "tiny": Preset(small_llada(106, 64, 3, 4, 176), 21, 40, 8),
}


def find_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in PRESETS:
        raise ValueError(f"--preset={name} is unknown{suggestion(name, PRESETS)}")
    return PRESETS[name]


def random_subject(name: str, config: DenoiserConfig, *, seed: int) -> Subject:
    """A denoiser with random weights that never proposes the mask token.

    Its logit is 0 everywhere, which is never the largest. Published samplers may write the mask
    token, and then waste a step; against such weights they and ours do the same work. Embeddings
    must be untied.
    """
    params = denoisers.init_params(config, streams.stream(streams.root(seed), "init"))
    params["head"] = params["head"].at[config.mask_token_id].set(0)
    return Subject(name, Denoiser(config), params)


def load_subject(path: str, dtype: str | None, *, with_tokenizer: bool) -> Subject:
    """A denoiser from files, in the type of the files if `dtype` is None.

    `path` is a shipped model, a directory, or a hub name.
    """
    types: dict[str, Any] = {"dtype": dtype, "param_dtype": dtype}
    if with_tokenizer:
        return Subject(path, *load_model(path, **types))
    return Subject(path, *denoisers.from_pretrained(path, **types))


def random_prompts(config: DenoiserConfig, count: int, length: int, *, seed: int) -> Prompts:
    """Prompts of `length` uniform ordinary tokens, without padding: NumPy arrays [count, length].

    Raises:
        ValueError: the vocabulary holds nothing but special tokens.
    """
    special = {getattr(config, name) for name in TOKENS}
    ordinary = np.array([k for k in range(config.vocab_size) if k not in special], np.int32)
    if not len(ordinary):
        raise ValueError(f"vocab_size={config.vocab_size} leaves no ordinary token for a prompt")
    tokens = np.random.default_rng(seed).choice(ordinary, (count, length))
    return Prompts(tokens=tokens, mask=np.ones(tokens.shape, bool))  # type: ignore[arg-type]


def task_prompts(
    name: str, tokenizer: Tokenizer, count: int, length: int | None, *, data: str | None = None
) -> Prompts:
    """The first test prompts of a task, over again where it has fewer.

    `name` is in the notation of `tasks.parse`, `data` the directory of tasks that read files. They
    are padded on the left to `length`; None for that of the longest.

    Raises:
        ValueError: the task is unknown, or a prompt is longer than `length`.
    """
    task = tasks.parse(name, data)
    source = task.source("test")
    examples = [source[k % len(source)] for k in range(count)]
    prompts = [tokenizer.encode_prompt(task.prompt(example)) for example in examples]
    longest = max(map(len, prompts))
    return tokenizer.pad_prompts(prompts, longest if length is None else length, truncate=False)
