"""Likelihood of a text under a masked diffusion model, estimated by masking at random.

The estimator is LLaDA's (arXiv 2502.09992, appendix B, equation 14): of a response of l tokens, k
are masked, k uniform in 1 .. l and the positions uniform among the sets of k; then

    log p(response | prompt) >= E[ l / k * sum over masked i of log p(i | prompt, the others) ].

The expectation of the right side is the model's evidence lower bound.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_unmask import policies
from jax_unmask.denoisers import Denoiser, Params
from jax_unmask.denoisers.transformer import output_table
from jax_unmask.learners.token_log_prob import token_log_prob
from jax_unmask.policies.order import descending_ranks
from jax_unmask.rollout import Prompts, RolloutSettings, rollout, row_keys
from jax_unmask.runtime import streams

_Rows = tuple[Any, ...]  # (tokens, real, wanted), [S] or [R, S] each

_POSITIONS_PER_CHUNK = 256
_VOCAB_CHUNK = 16384
_WIDTH = 32
"""Sequences are padded to multiples of this: few lengths to compile for."""


class Likelihood:
    """Estimates log-likelihoods of responses to prompts.

    Args:
        denoiser, params: the dLLM, with full attention.
        draws: masks per response; the standard error falls with its square root.
        batch_size: masks per response and forward; divides `draws`. The numbers of masked tokens
            are spread evenly over them, as published.
        together: responses per forward, of like length.
        seed: seed of the masks.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        params: Params,
        *,
        draws: int,
        batch_size: int,
        together: int = 1,
        seed: int = 0,
    ) -> None:
        if together < 1:
            raise ValueError(f"together={together} must be at least 1")
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
        self._draws, self._batch_size, self._together = draws, batch_size, together
        self._key = streams.stream(streams.root(seed), "likelihood")

    def log_likelihoods(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[float]:
        """The estimates for pairs of a prompt and its response (tokens), in nats.

        The masks depend on the seed and the lengths alone: alternatives of equal length, such as
        the choices of a question, are compared under the same masks, whatever stands beside them.

        Raises:
            ValueError: a response is empty, or both together are too long for the model.
        """

        def estimate(rows: _Rows) -> Array:
            settings = self._key, self._draws, self._batch_size
            return _estimates(self._denoiser, self._params, *rows, *settings)

        found = [float(np.mean(each, dtype=np.float64)) for each in self._each(pairs, estimate)]
        for number, value in enumerate(found):
            if math.isnan(value):
                raise FloatingPointError(
                    f"the likelihood of response {number} is not a number: the denoiser's "
                    "activations overflow, or its weights are damaged. Compute in float32 or "
                    "bfloat16 (dtype), or load the weights again"
                )
        return found

    def are_greedy(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[bool]:
        """Whether the model writes each response of itself, the most confident token first.

        Each length of a response compiles its own program.
        """
        policy = policies.TopConfidence()

        def compare(rows: _Rows) -> Array:
            tokens, real, wanted = rows
            length = int(wanted[0].sum())
            prompts = Prompts(tokens=tokens[:, :-length], mask=real[:, :-length])
            written = rollout(
                self._denoiser,
                self._params,
                policy,
                policy.params(),
                prompts,
                row_keys(self._key, len(tokens)),
                RolloutSettings(length, length, vocab_chunk=_VOCAB_CHUNK),
            ).tokens
            return (written == tokens[:, -length:]).all(axis=-1)

        return [bool(each) for each in self._each(pairs, compare, of_one_length=True)]

    def _each(
        self,
        pairs: Sequence[tuple[list[int], list[int]]],
        compute: Callable[[_Rows], Array],
        *,
        of_one_length: bool = False,
    ) -> list[np.ndarray]:
        """Results for all pairs, from batches of pairs that are padded to the same width.

        With `of_one_length` the responses of a batch have the same length, too.
        """
        sizes = [(self._width(*pair), of_one_length and len(pair[1])) for pair in pairs]
        found: list[np.ndarray] = [np.empty(0)] * len(pairs)
        for size in sorted(set(sizes)):
            width, rows = size[0], [row for row, of_row in enumerate(sizes) if of_row == size]
            for start in range(0, len(rows), self._together):
                batch = rows[start : start + self._together]
                # The last pair fills the batch up: one size is one program.
                filled = batch + batch[-1:] * (min(self._together, len(rows)) - len(batch))
                padded = [self._padded(*pairs[row], width) for row in filled]
                done = jax.device_get(compute(tuple(map(jnp.stack, zip(*padded, strict=True)))))
                for row, result in zip(batch, done, strict=False):
                    found[row] = result
        return found

    def _width(self, prompt: list[int], response: list[int]) -> int:
        length, most = len(prompt) + len(response), self._denoiser.config.max_length
        if not response:
            raise ValueError("the response is empty; its likelihood needs at least one token")
        if length > most:
            raise ValueError(
                f"prompt and response have {length} tokens together; the model's max_length is "
                f"{most}. Shorten the prompt"
            )
        return min(-(-length // _WIDTH) * _WIDTH, most)

    def _padded(self, prompt: list[int], response: list[int], width: int) -> _Rows:
        """Left-padded tokens, which are real, and which belong to the response; [S] each."""
        pad = width - len(prompt) - len(response)
        tokens = np.array([self._denoiser.config.pad_token_id] * pad + prompt + response, np.int32)
        place = np.arange(width)
        return tokens, place >= pad, place >= width - len(response)


@functools.partial(jax.jit, static_argnames=("denoiser", "draws", "batch_size"))
def _estimates(
    denoiser: Denoiser,
    params: Params,
    tokens: Int[Array, "R S"],
    real: Bool[Array, "R S"],
    wanted: Bool[Array, "R S"],
    key: Array,
    draws: int,
    batch_size: int,
) -> Float[Array, "R draws"]:
    length = wanted.sum(axis=-1, dtype=jnp.int32)
    table = output_table(denoiser.config, params)

    def forward(batch_key: Array) -> Float[Array, "R batch"]:
        masked = jax.vmap(lambda each: stratified_masks(batch_key, each, batch_size))(wanted)
        canvas = jnp.where(masked, denoiser.config.mask_token_id, tokens[:, None])
        attended = jnp.broadcast_to(real[:, None], canvas.shape)
        # Rows of one batch: every mask of every response.
        canvas, attended = (x.reshape(-1, x.shape[-1]) for x in (canvas, attended))
        hidden = cast(
            Array, denoiser.apply({"params": params}, canvas, attended, method="hidden")
        )  # without mutable collections, apply returns the output alone
        log_probs = token_log_prob(
            table,
            hidden.reshape(-1, hidden.shape[-1]),
            jnp.broadcast_to(tokens[:, None], masked.shape).reshape(-1),
            masked.reshape(-1),
            _POSITIONS_PER_CHUNK,
        ).reshape(masked.shape)
        return length[:, None] / masked.sum(axis=-1) * log_probs.sum(axis=-1)

    found = jax.lax.map(forward, jax.random.split(key, draws // batch_size))
    return found.swapaxes(0, 1).reshape(len(tokens), draws)


def stratified_masks(key: Array, wanted: Bool[Array, " S"], rows: int) -> Bool[Array, "rows S"]:
    """Random masks over the wanted positions: k of l each, k from 1 to l.

    The first row's k is uniform; the others follow at even distances, modulo l, so that every row's
    k is uniform and the rows of a batch cover all sizes.
    """
    length = wanted.sum(dtype=jnp.int32)
    of_size, of_places = jax.random.split(key)
    first = jax.random.randint(of_size, (), 1, length + 1)
    steps = jnp.arange(rows) * length // rows
    size = (first + steps - 1) % length + 1
    noise = jax.random.uniform(of_places, (rows, wanted.shape[0]))
    return wanted & (descending_ranks(-noise, wanted) < size[:, None])
