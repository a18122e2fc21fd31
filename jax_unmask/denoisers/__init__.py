"""Denoisers: masked diffusion language models."""

from jax_unmask.denoisers.adapters import LoraSettings, init_adapters, merge_adapters, with_adapters
from jax_unmask.denoisers.config import DenoiserConfig
from jax_unmask.denoisers.pretrained import (
    check_weights,
    from_pretrained,
    save_orbax,
    save_pretrained,
)
from jax_unmask.denoisers.tokenizer import Tokenizer, load_tokenizer
from jax_unmask.denoisers.transformer import (
    Denoiser,
    Params,
    abstract_params,
    count_params,
    init_params,
)

__all__ = [
    "Denoiser",
    "DenoiserConfig",
    "LoraSettings",
    "Params",
    "Tokenizer",
    "abstract_params",
    "check_weights",
    "count_params",
    "from_pretrained",
    "init_adapters",
    "init_params",
    "load_tokenizer",
    "merge_adapters",
    "save_orbax",
    "save_pretrained",
    "with_adapters",
]
