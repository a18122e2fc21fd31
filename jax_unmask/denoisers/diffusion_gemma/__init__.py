"""DiffusionGemma: block diffusion from uniform noise instead of masks.

There is no mask token: a canvas starts as random tokens, every forward scores all of them, what the
sampler does not accept is drawn anew. So it shares neither the transformer of the masked families
nor their rollout (see `rollout.canvases`), but its acceptance rule is a policy like any other.
Text only: the vision tower's weights are carried along and never run.
"""

from jax_unmask.denoisers.diffusion_gemma.checkpoint import (
    Checkpoint,
    is_model,
    load,
    save,
    save_orbax,
)
from jax_unmask.denoisers.diffusion_gemma.config import DiffusionGemmaConfig
from jax_unmask.denoisers.diffusion_gemma.model import DiffusionGemma

__all__ = [
    "Checkpoint",
    "DiffusionGemma",
    "DiffusionGemmaConfig",
    "is_model",
    "load",
    "save",
    "save_orbax",
]
