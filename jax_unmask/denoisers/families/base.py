"""How a family's checkpoint tensors map to parameters."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """One tensor of a checkpoint file.

    Attributes:
        name: its name in the safetensors files.
        path: the parameter that it fills, as keys of the nested dict.
        layer: its index on the parameter's leading (layer) axis; None for a parameter by itself.
        transpose: the file holds [out, in] and the parameter [in, out].
    """

    name: str
    path: tuple[str, ...]
    layer: int | None = None
    transpose: bool = False
