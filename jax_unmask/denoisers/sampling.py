"""Drawing of tokens from logits with top-k and top-p, and their confidences."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_unmask.settings import Settings, setting


@dataclasses.dataclass(frozen=True)
class Sampling(Settings):
    """Filters between the logits and the draw; hashable. The default filters nothing.

    Published samplers disagree about what the confidence of a drawn token is. LLaDA takes the
    denoiser's own probability of it; Dream and SDAR that of the distribution from which it was
    drawn, after temperature and filters (with top_k=1, then, every confidence is 1).

    Attributes:
        top_p_first: top-p counts all tokens, as in Dream; otherwise those that top-k left, as in
            SDAR.
        filtered_confidence: confidences (and largest probabilities and entropies) are those of the
            distribution that the token is drawn from, as in Dream and SDAR.
    """

    top_k: int = setting(
        0, "Draw from this many most probable tokens only, and equals of the last; 0 for all.", ge=0
    )
    top_p: float = setting(
        1.0,
        "Draw from the most probable tokens that together reach this probability; 1 for all.",
        gt=0,
        le=1,
    )
    top_p_first: bool = False
    filtered_confidence: bool = False

    @property
    def filters(self) -> bool:
        """Whether tokens are left out at all."""
        return self.top_k > 0 or self.top_p < 1

    def changes(self, temperature: float) -> bool:
        """Whether anything differs from a plain draw at this temperature.

        At temperature 0 the most probable token is taken, and the distribution is the one at 1.
        """
        return self.filters or (self.filtered_confidence and temperature not in (0.0, 1.0))


PLAIN = Sampling()
"""Draws from the whole distribution."""


def filtered(logits: Float[Array, "*B V"], sampling: Sampling) -> Float[Array, "*B V"]:
    """Logits with -inf for the tokens that are left out.

    Args:
        logits: logits, after temperature.
        sampling: what to keep; the most probable token always stays.

    >>> filtered(jnp.log(jnp.array([0.2, 0.5, 0.3])), Sampling(top_k=2)).tolist()[0]
    -inf
    """
    if not sampling.filters:
        return logits
    return jnp.where(logits >= _lowest_kept(logits, sampling), logits, -jnp.inf)


def _lowest_kept(logits: Float[Array, "*B V"], sampling: Sampling) -> Float[Array, "*B 1"]:
    """The smallest logit that stays."""
    vocab = logits.shape[-1]
    top_k = min(sampling.top_k or vocab, vocab)
    if sampling.top_p == 1:
        return jax.lax.top_k(logits, top_k)[0][..., -1:]
    if sampling.top_p_first:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        return jnp.maximum(_nucleus(ordered, sampling.top_p), ordered[..., top_k - 1 : top_k])
    return _nucleus(jax.lax.top_k(logits, top_k)[0], sampling.top_p)


def _nucleus(ordered: Float[Array, "*B K"], top_p: float) -> Float[Array, "*B 1"]:
    """Smallest of the descending logits before which less than `top_p` of the mass lies."""
    mass = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(mass, axis=-1) - mass
    kept = jnp.where(before <= top_p, ordered, jnp.inf)
    return kept.min(axis=-1, keepdims=True)
