"""Denoisers: masked diffusion language models."""

from __future__ import annotations

from jax_unmask.denoisers.config import DenoiserConfig
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
    "Params",
    "abstract_params",
    "count_params",
    "init_params",
]
