"""The optimiser of all learners: AdamW or Muon, warm-up and a schedule, clipping by global norm."""

import dataclasses
from typing import Any, Literal

import jax
import optax
from optax import contrib

from jax_unmask.settings import MAX_INT, Settings, setting

# Share of a "stable" run in which the rate falls.
_DECAY = 0.25

# Momentum of Muon, and root mean square of its updates over the rate, in practice that of AdamW.
_MUON_BETA = 0.95
_MUON_RMS = 0.2

# Leaves whose last two axes are a matrix between activations: dense layers, LoRA, experts.
_MATRICES = ("kernel", "lora_a", "lora_b", "gate", "up", "down", "router")

# Ends of the names of leaves that weight decay leaves alone: biases and normalisation gains.
_NOT_DECAYED = ("bias", "scale")


@dataclasses.dataclass(frozen=True)
class OptimizerSettings(Settings):
    """AdamW (arXiv 1711.05101) or Muon after gradient clipping by global norm.

    The defaults are those of the published unmasking policies (arXiv 2512.09106); small policies
    that are trained for a few hundred steps need a rate about 100 times higher.

    A longer "stable" run begins with the same steps as a shorter one, and can go on from its
    checkpoints.
    """

    lr: float = setting(3e-5, "Peak learning rate.", gt=0, le=100)
    warmup_steps: int = setting(
        100,
        "Optimiser steps of linear warm-up, from lr / warmup_steps; 0 for none.",
        ge=0,
        le=MAX_INT,
    )
    schedule: Literal["cosine", "constant", "stable"] = setting(
        "cosine",
        "After warm-up constant stays at lr, cosine falls over the rest of the run, and stable "
        "falls linearly in its last quarter (arXiv 2404.06395).",
    )
    final_fraction: float = setting(
        0.0, "Final learning rate, except of constant, as a fraction of lr.", ge=0, le=1
    )
    b1: float = setting(0.9, "Decay of the first moment.", ge=0, lt=1)
    b2: float = setting(0.99, "Decay of the second moment.", ge=0, lt=1)
    weight_decay: float = setting(
        0.1, "Decoupled weight decay of all parameters but biases and gains.", ge=0, le=1e3
    )
    grad_clip: float | None = setting(
        0.2, "Largest global norm of the gradient; None for no clipping.", gt=0
    )
    kind: Literal["adamw", "muon"] = setting(
        "adamw",
        "muon makes the updates of weight matrices orthogonal, as long as those of AdamW (arXiv "
        "2502.16982), with Nesterov momentum, and leaves all else, embeddings and head included, "
        "to AdamW with the same.",
    )

    def rate(self, total_steps: int) -> optax.Schedule:
        """Learning rate by optimiser step, counted from 0.

        Args:
            total_steps: optimiser steps of the whole run, warm-up included.
        """
        final, left = self.final_fraction * self.lr, total_steps - self.warmup_steps
        if self.schedule == "constant":
            after = optax.constant_schedule(self.lr)
        elif self.schedule == "stable":
            decay = _DECAY * total_steps
            after = optax.linear_schedule(self.lr, final, decay, max(0, left - decay))
        else:
            after = optax.cosine_decay_schedule(self.lr, left, self.final_fraction)
        if not self.warmup_steps:
            return after
        # No step is spent at a rate of zero.
        first = self.lr / self.warmup_steps
        warmup = optax.linear_schedule(first, self.lr, max(1, self.warmup_steps - 1))
        return optax.join_schedules([warmup, after], [self.warmup_steps])

    def check_steps(self, total_steps: int) -> None:
        """Refuses a warm-up that leaves nothing of a run.

        Raises:
            SettingError: it takes all of its optimiser steps.
        """
        self.require(
            self.schedule == "constant" or self.warmup_steps < total_steps,
            "warmup_steps",
            f"it leaves nothing of the run's {total_steps} optimiser steps",
            f"Train longer or lower it, for example {total_steps // 2}",
        )

    def build(self, total_steps: int) -> optax.GradientTransformation:
        """The optimiser of a run of so many optimiser steps.

        Raises:
            SettingError: warm-up takes all of them.
        """
        self.check_steps(total_steps)
        rate = self.rate(total_steps)
        if self.kind == "muon":
            rule = contrib.muon(
                rate,
                beta=_MUON_BETA,
                consistent_rms=_MUON_RMS,
                weight_decay=self.weight_decay,
                weight_decay_mask=decay_mask,
                adam_b1=self.b1,
                adam_b2=self.b2,
                adam_weight_decay=self.weight_decay,
                muon_weight_dimension_numbers=_matrices,
            )
        else:
            rule = optax.adamw(
                rate, b1=self.b1, b2=self.b2, weight_decay=self.weight_decay, mask=decay_mask
            )
        if self.grad_clip is None:
            return rule
        return optax.chain(optax.clip_by_global_norm(self.grad_clip), rule)


def decay_mask(params: Any) -> Any:
    """True for the leaves that weight decay applies to: all but biases and normalisation gains.

    Leaves are distinguished by their name, not by their rank: layers that are stacked for a scan
    have biases of rank two.

    Args:
        params: nested dict of parameters in linen's names.
    """

    def decays(path: tuple[Any, ...], _: Any) -> bool:
        return not _name(path).endswith(_NOT_DECAYED)

    return jax.tree_util.tree_map_with_path(decays, params)


def _matrices(params: Any) -> Any:
    """Axes of the matrices that Muon makes orthogonal; None for other leaves."""

    def axes(path: tuple[Any, ...], leaf: jax.Array) -> contrib.MuonDimensionNumbers | None:
        if leaf.ndim < 2 or _name(path) not in _MATRICES:
            return None
        return contrib.MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(axes, params)


def _name(path: tuple[Any, ...]) -> str:
    return str(getattr(path[-1], "key", ""))
