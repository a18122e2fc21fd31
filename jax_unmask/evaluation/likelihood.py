"""Likelihood of a text under a masked diffusion model, estimated by masking at random.

The estimator is LLaDA's (arXiv 2502.09992, appendix B, equation 14): of a response of l tokens, k
are masked, k uniform in 1 .. l and the positions uniform among the sets of k; then

    log p(response | prompt) >= E[ l / k * sum over masked i of log p(i | prompt, the others) ].

The expectation of the right side is the model's evidence lower bound.
"""

from __future__ import annotations

import functools
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_unmask.denoisers import Denoiser, Params
from jax_unmask.denoisers.transformer import output_table
from jax_unmask.learners.states.token_log_prob import token_log_prob
from jax_unmask.runtime import streams

_POSITIONS_PER_CHUNK = 256
_WIDTH = 32
"""Sequences are padded to multiples of this: few lengths to compile for."""


class Likelihood:
    """Estimates log-likelihoods of responses to prompts, one at a time.

    Args:
        denoiser: the dLLM, with full attention.
        params: its parameters.
        draws: masks per response; the standard error falls with its square root.
        batch_size: masks per forward; divides `draws`. The numbers of masked tokens are spread
            evenly over the masks of a forward, as published.
        seed: seed of the masks.

    Raises:
        ValueError: the denoiser has block attention, or a number is out of range.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        params: Params,
        *,
        draws: int = 128,
        batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        if denoiser.config.attention_block is not None:
            raise ValueError(
                f"family {denoiser.config.family!r} has block attention; its likelihood is not "
                "that of masking anywhere. Use a family with full attention"
            )
        if batch_size < 1 or draws < 1 or draws % batch_size:
            raise ValueError(
                f"draws={draws} must be a positive multiple of batch_size={batch_size}"
            )
        self._denoiser, self._params = denoiser, params
        self._draws, self._batch_size = draws, batch_size
        self._key = streams.stream(streams.root(seed), "likelihood")

    def log_likelihood(self, prompt: list[int], response: list[int]) -> float:
        """The estimate for a response, in nats.

        The masks depend on the seed and the lengths alone: alternatives of equal length, such as
        the choices of a question, are compared under the same masks.

        Raises:
            ValueError: the response is empty, or both together are too long for the model.
        """
        tokens, real, wanted = self._padded(prompt, response)
        estimates = _estimates(
            self._denoiser,
            self._params,
            tokens,
            real,
            wanted,
            self._key,
            self._draws,
            self._batch_size,
        )
        return float(np.mean(jax.device_get(estimates), dtype=np.float64))

    def is_greedy(self, prompt: list[int], response: list[int]) -> bool:
        """Whether the model writes this response of itself, the most confident token first.

        Raises:
            ValueError: as `log_likelihood`.
        """
        tokens, real, wanted = self._padded(prompt, response)
        return bool(_is_greedy(self._denoiser, self._params, tokens, real, wanted))

    def _padded(
        self, prompt: list[int], response: list[int]
    ) -> tuple[Int[Array, " S"], Bool[Array, " S"], Bool[Array, " S"]]:
        """Left-padded tokens, which are real, and which belong to the response."""
        length, most = len(prompt) + len(response), self._denoiser.config.max_length
        if not response:
            raise ValueError("the response is empty; its likelihood needs at least one token")
        if length > most:
            raise ValueError(
                f"prompt and response have {length} tokens together; the model's max_length is "
                f"{most}. Shorten the prompt"
            )
        width = min(-(-length // _WIDTH) * _WIDTH, most)
        pad = width - length
        tokens = np.array([self._denoiser.config.pad_token_id] * pad + prompt + response, np.int32)
        place = np.arange(width)
        return (
            jnp.asarray(tokens),
            jnp.asarray(place >= pad),
            jnp.asarray(place >= width - len(response)),
        )


@functools.partial(jax.jit, static_argnames=("denoiser", "draws", "batch_size"))
def _estimates(
    denoiser: Denoiser,
    params: Params,
    tokens: Int[Array, " S"],
    real: Bool[Array, " S"],
    wanted: Bool[Array, " S"],
    key: Array,
    draws: int,
    batch_size: int,
) -> Float[Array, " draws"]:
    length = wanted.sum(dtype=jnp.int32)
    table = output_table(denoiser.config, params)

    def forward(batch_key: Array) -> Float[Array, " batch"]:
        masked = stratified_masks(batch_key, wanted, batch_size)
        canvas = jnp.where(masked, denoiser.config.mask_token_id, tokens)
        attended = jnp.broadcast_to(real, canvas.shape)
        hidden = cast(
            Array, denoiser.apply({"params": params}, canvas, attended, method="hidden")
        )  # without mutable collections, apply returns the output alone
        log_probs = token_log_prob(
            table,
            hidden.reshape(-1, hidden.shape[-1]),
            jnp.broadcast_to(tokens, canvas.shape).reshape(-1),
            masked.reshape(-1),
            _POSITIONS_PER_CHUNK,
        ).reshape(canvas.shape)
        return length / masked.sum(axis=-1) * log_probs.sum(axis=-1)

    return jax.lax.map(forward, jax.random.split(key, draws // batch_size)).reshape(-1)


def stratified_masks(key: Array, wanted: Bool[Array, " S"], rows: int) -> Bool[Array, "rows S"]:
    """Random masks over the wanted positions: k of l each, k from 1 to l.

    The first row's k is uniform; the others follow at even distances, modulo l, so that every row's
    k is uniform and the rows of a batch cover all sizes.

    Args:
        key: typed PRNG key.
        wanted: positions that may be masked.
        rows: number of masks.
    """
    length = wanted.sum(dtype=jnp.int32)
    of_size, of_places = jax.random.split(key)
    first = jax.random.randint(of_size, (), 1, length + 1)
    steps = jnp.arange(rows) * length // rows
    size = (first + steps - 1) % length + 1
    noise = jax.random.uniform(of_places, (rows, wanted.shape[0]))
    order = jnp.argsort(jnp.argsort(jnp.where(wanted, noise, 2.0), axis=-1), axis=-1)
    return wanted & (order < size[:, None])


@functools.partial(jax.jit, static_argnames=("denoiser",))
def _is_greedy(
    denoiser: Denoiser,
    params: Params,
    tokens: Int[Array, " S"],
    real: Bool[Array, " S"],
    wanted: Bool[Array, " S"],
) -> Array:
    mask_id = denoiser.config.mask_token_id

    def step(_: Array, canvas: Int[Array, " S"]) -> Int[Array, " S"]:
        logits = denoiser.apply({"params": params}, canvas[None], real[None])[0]
        # The mask token is no text, as in the rollout.
        logits = logits.at[:, mask_id].set(-jnp.inf)
        confidence = jnp.where(canvas == mask_id, jax.nn.softmax(logits).max(axis=-1), -1.0)
        place = jnp.argmax(jnp.where(wanted, confidence, -1.0))
        return canvas.at[place].set(jnp.argmax(logits[place]).astype(canvas.dtype))

    start = jnp.where(wanted, mask_id, tokens)
    written = jax.lax.fori_loop(0, wanted.sum(dtype=jnp.int32), step, start)
    return (written == tokens).all()
