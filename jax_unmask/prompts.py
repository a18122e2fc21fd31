"""Batches of encoded prompts: what tokenizers and tasks make and rollouts take."""

from flax import struct
from jaxtyping import Array, Bool, Int


@struct.dataclass
class Prompts:
    """A batch of left-padded prompts.

    Attributes:
        tokens: token ids.
        mask: True where a token is real, False where it is padding (never attended).
        present: rows that exist; None for all. The others only fill up a batch: they are never
            rolled out, their canvases stay empty and they cost nothing after the last row.
        targets: responses to write, or None. With them the candidate of each position is its
            target, and its confidence the denoiser's probability of that: such a rollout finds out
            in which order a policy would write a given response. For temperature 0, no cache.
    """

    tokens: Int[Array, "B P"]
    mask: Bool[Array, "B P"]
    present: Bool[Array, " B"] | None = None
    targets: Int[Array, "B L"] | None = None
