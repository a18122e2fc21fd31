"""Softmax attention and rotary position embeddings."""

import functools
import logging
import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jax_unmask.denoisers import tpu_attention
from jax_unmask.denoisers.positions import NEVER, Bounds, Leading
from jax_unmask.runtime import accelerators

# cuDNN takes wider heads on some GPUs only.
_WIDEST_FUSED_HEAD = 128
# Queries whose scores exist at one time where a text stands beside a copy of itself.
_QUERIES_PER_CHUNK = 256
# Positions in a register of a TPU.
_SUBLANES = 8

logger = logging.getLogger(__name__)


@struct.dataclass
class Copies:
    """Attention rule for a text followed by a partly masked copy of itself.

    Block-causal attention with a state of every block at once (arXiv 2503.09573, section 3.2; arXiv
    2509.06949, section 4.3): a position of the text attends to its block and those before it; one
    of the copy attends to the text's blocks before its block, and to its block in the copy. So each
    block of the copy attends to the same tokens as a decoder that has finished the blocks before
    it. The rule follows from these labels, one per token; a square mask is never in memory.

    Several texts in a row see nothing of each other.
    """

    block: Int[Array, "B S"]  # Block of each token.
    noisy: Bool[Array, "B S"]  # The token belongs to the copy.
    real: Bool[Array, "B S"]  # The token is no padding.
    text: Int[Array, "B S"] | None = None  # Text of each token; None for one text.

    def bounds(self) -> Bounds:
        """The bounds of the rule, of all tokens."""
        # Labels of the copy are even, those of the text odd: a token of the text is seen by what
        # comes after the copy of its block, one of the copy by its block in the copy alone.
        each = 2 * (self.block.shape[1] + 2)
        start = 0 if self.text is None else self.text * each
        own = start + 2 * (self.block + 1)
        label = jnp.where(self.noisy, own, own + 1)
        high = jnp.where(self.noisy, own, start + each - 1)
        return Bounds(label, jnp.where(self.real, label, NEVER), high)

    def visible(
        self,
        block: Int[Array, "B Q"],
        noisy: Bool[Array, "B Q"],
        text: Int[Array, "B Q"] | None = None,
    ) -> Bool[Array, "B Q S"]:
        """True where queries with these labels see a token."""
        block, noisy = block[..., None], noisy[..., None]
        same, before = self.block[:, None] == block, self.block[:, None] < block
        seen = jnp.where(self.noisy[:, None], same & noisy, before | (same & ~noisy))
        if text is not None and self.text is not None:
            seen &= self.text[:, None] == text[..., None]
        return seen & self.real[:, None]


def attention_in_copies(
    query: Float[Array, "B S H d"],
    key: Float[Array, "B S G d"],
    value: Float[Array, "B S G d"],
    copies: Copies,
    fused: bool = False,
) -> Float[Array, "B S H d"]:
    """`attention` under the rule of `Copies`, a chunk of queries at a time.

    Neither scores nor mask exist for more than `_QUERIES_PER_CHUNK` queries, in the backward pass
    too, where they are computed again. `fused` as in `attention`.
    """
    if fused and takes_kernel(query, key):
        return tpu_attention.attend(query, key, value, copies.bounds())
    length = query.shape[1]
    if length <= _QUERIES_PER_CHUNK:
        visible = copies.visible(copies.block, copies.noisy, copies.text)
        return attention(query, key, value, visible)
    spare = -length % _QUERIES_PER_CHUNK

    def chunked(x: Array) -> Array:
        padded = jnp.pad(x, [(0, 0), (0, spare)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(padded.reshape(x.shape[0], -1, _QUERIES_PER_CHUNK, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def of_chunk(part: tuple[Array, Array, Array, Array | None]) -> Array:
        query, block, noisy, text = part
        return attention(query, key, value, copies.visible(block, noisy, text))

    labels = (copies.block, copies.noisy, copies.text)
    out = jax.lax.map(of_chunk, jax.tree.map(chunked, (query, *labels)))
    out = jnp.moveaxis(out, 0, 1)
    return out.reshape(out.shape[0], -1, *out.shape[3:])[:, :length]


@struct.dataclass
class CachedKeys:
    """Cached keys (rotated) and values, head by head, that positions attend to beside the new ones.

    `cached_mask` is True where a query may see a cached key, `mask` where it may see one of the
    positions' own.
    """

    keys: Float[Array, "B G K d"]
    values: Float[Array, "B G K d"]
    cached_mask: Bool[Array, "B 1|Q K"]
    mask: Bool[Array, "B 1|Q Q"]


def fuses(dtype: DTypeLike, head_dim: int, gradients: bool = False) -> bool:
    """Whether a fused kernel of the device takes such heads; its scores never reach memory.

    On GPUs that is cuDNN's flash attention, for 16-bit types and without gradients here. On TPUs it
    is a Pallas kernel, for forwards whose scores are large (`tpu_attention`). Everything else takes
    the plain products, and so does everything with JAX_UNMASK_ATTENTION=plain.

    Raises:
        ValueError: JAX_UNMASK_ATTENTION is unknown, or asks for a kernel that there is not.
    """
    wanted, backend = _wanted(), accelerators.platform()
    path, narrow = "plain products", jnp.dtype(dtype)
    if wanted != "plain" and backend == "gpu" and not gradients:
        is_short = narrow in (jnp.bfloat16, jnp.float16)
        if is_short and head_dim % 8 == 0 and head_dim <= _WIDEST_FUSED_HEAD:
            path = "cuDNN's kernel"
    elif wanted != "plain" and backend == "tpu":
        is_taken = narrow in (jnp.bfloat16, jnp.float32) and head_dim % tpu_attention.LANES == 0
        # Cores of the fourth generation have too little fast memory.
        if is_taken and "v4" not in accelerators.devices()[0].device_kind:
            path = "a Pallas kernel"
    if wanted == "flash" and path == "plain products" and not gradients:
        raise ValueError(
            f"JAX_UNMASK_ATTENTION='flash' cannot be had on {backend} for {narrow.name} and heads "
            f"of width {head_dim}; GPUs have it for 16-bit types and widths up to "
            f"{_WIDEST_FUSED_HEAD}, TPUs from v5 on for bfloat16, float32 and multiples of "
            f"{tpu_attention.LANES}. Use 'auto'"
        )
    if not gradients:
        _log(f"Attention in rollouts on {backend}: {path}.")
    return path != "plain products"


def _wanted() -> str:
    wanted = os.environ.get("JAX_UNMASK_ATTENTION", "auto")
    if wanted not in ("auto", "plain", "flash"):
        raise ValueError(f"JAX_UNMASK_ATTENTION={wanted!r} must be 'auto', 'plain' or 'flash'")
    return wanted


def takes_kernel(
    query: Float[Array, "B Q H d"] | jax.ShapeDtypeStruct,
    key: Float[Array, "B K G d"] | jax.ShapeDtypeStruct,
) -> bool:
    """Whether the TPU's kernel is taken for these shapes, where a forward may take it."""
    if accelerators.platform() != "tpu":
        return False
    reason = tpu_attention.refusal(query, key, small_too=_wanted() == "flash")
    chosen = f"plain products: {reason}" if reason else "the Pallas kernel"
    _log(f"Attention of {query.shape[1]} queries of {query.shape[0]} rows: {chosen}.")
    return not reason


@functools.cache
def _log(message: str) -> None:
    logger.info(message)


def attention(
    query: Float[Array, "B Q H d"],
    key: Float[Array, "B K G d"],
    value: Float[Array, "B K G d"],
    mask: Bool[Array, "#B #Q K"] | Bounds | Leading | None = None,
    *,
    fused: bool = False,
) -> Float[Array, "B Q H d"]:
    """Scaled dot-product attention, grouped where G < H (key head j serves H / G query heads).

    Scores and softmax are float32; the result has the type of `query`. `mask` is True where a query
    may see a key; a query whose keys are all hidden gets the mean of the values, which is finite.
    `fused` takes the device's kernel, see `fuses`.
    """
    if isinstance(mask, Leading):
        if fused and accelerators.platform() == "gpu":
            return jax.nn.dot_product_attention(
                query, key, value, key_value_seq_lengths=mask.count, implementation="cudnn"
            )
        mask = mask.visible(key.shape[1])
    is_rule = mask is None or isinstance(mask, Bounds) or mask.shape[1] == 1
    if fused and is_rule and takes_kernel(query, key):
        return tpu_attention.attend(query, key, value, _bounds_of(mask, query, key))
    if isinstance(mask, Bounds):
        mask = mask.visible()
    if fused and accelerators.platform() != "tpu":
        if mask is not None:
            # The kernel adds a bias, which must have all queries; heads may share it.
            mask = jnp.broadcast_to(mask, (*query.shape[:2], key.shape[1]))[:, None]
        return jax.nn.dot_product_attention(query, key, value, mask=mask, implementation="cudnn")
    # Head-major copies make both products plain batched matrix products: a tenth off a forward on
    # CPUs against `jax.nn.dot_product_attention`, and other backends do not mind.
    key, value = key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3)
    return _attend(query, [(key, value, mask)], query.shape[-1] ** -0.5)


def _bounds_of(mask: Bool[Array, "#B 1 K"] | Bounds | None, query: Array, key: Array) -> Bounds:
    """The rule of a mask that is the same for all queries."""
    if isinstance(mask, Bounds):
        return mask
    low = jnp.zeros((1, key.shape[1]), jnp.int32)
    low = low if mask is None else jnp.where(mask[:, 0], low, NEVER)
    return Bounds(jnp.zeros((1, query.shape[1]), jnp.int32), low)


def _attend(
    query: Float[Array, "B Q H d"], sets: Sequence[tuple[Array, Array, Array | None]], scale: float
) -> Float[Array, "B Q H d"]:
    """One softmax over one or several sets of (keys [B, G, K, d], values, mask or None)."""
    batch, length, heads, width = query.shape
    groups, dtype = sets[0][0].shape[1], sets[0][1].dtype
    query = query.transpose(0, 2, 1, 3).reshape(batch, groups, heads // groups, length, width)

    def scores(keys: Array, mask: Array | None) -> Float[Array, "B G h Q K"]:
        out = jnp.einsum("bghqd,bgkd->bghqk", query, keys, preferred_element_type=jnp.float32)
        out *= scale
        # The lowest finite number, not -inf: a row without any visible key must not become NaN.
        lowest = jnp.finfo(jnp.float32).min
        return out if mask is None else jnp.where(mask[:, None, None], out, lowest)

    def weighted(
        weights: Array, values: Array, wide: DTypeLike | None
    ) -> Float[Array, "B G h Q d"]:
        weights = weights.astype(dtype)
        return jnp.einsum("bghqk,bgkd->bghqd", weights, values, preferred_element_type=wide)

    scored = [(scores(keys, mask), values) for keys, values, mask in sets]
    if len(scored) == 1 and accelerators.platform() != "cpu":
        out = weighted(jax.nn.softmax(scored[0][0], axis=-1), scored[0][1], None)
    else:
        # Divided by the sum of the weights after the product. Heads are narrower than sequences are
        # long, so that is less to divide; CPUs notice.
        maxima = [jnp.max(each, axis=-1, keepdims=True) for each, _ in scored]
        largest = jax.lax.stop_gradient(functools.reduce(jnp.maximum, maxima))
        weights = [(jnp.exp(each - largest), values) for each, values in scored]
        products = [weighted(each, values, jnp.float32) for each, values in weights]
        totals = [each.sum(axis=-1, keepdims=True) for each, _ in weights]
        out = functools.reduce(jnp.add, products) / functools.reduce(jnp.add, totals)
        out = out.astype(dtype)
    return out.reshape(batch, heads, length, width).transpose(0, 2, 1, 3)


def attention_with_cache(
    query: Float[Array, "B Q H d"],
    key: Float[Array, "B Q G d"],
    value: Float[Array, "B Q G d"],
    cached: CachedKeys,
    scale: float | None = None,
) -> Float[Array, "B Q H d"]:
    """`attention` of a few positions to each other and to cached ones.

    One softmax over both sets of keys, without an array that holds both: a cache is read where it
    lies. `scale` is the factor on the scores, by default d ** -0.5.
    """
    key, value = key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3)
    others = (cached.keys, cached.values, cached.cached_mask)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return _attend(query, [(key, value, cached.mask), others], scale)


def rotary_table(
    positions: Int[Array, "#B S"], head_dim: int, theta: float, turning: int | None = None
) -> tuple[Float[Array, "#B S 1 d2"], Float[Array, "#B S 1 d2"]]:
    """Cosines and sines of rotary position embeddings, float32.

    Su et al. 2021, "RoFormer", arXiv 2104.09864: the d / 2 frequencies theta^(-2i / head_dim), of
    which only the first `turning` are not zero (None for all).
    """
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    if turning is not None:
        frequencies = jnp.where(jnp.arange(head_dim // 2) < turning, frequencies, 0.0)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "B S H d"],
    table: tuple[Float[Array, "#B S 1 d2"], Float[Array, "#B S 1 d2"]],
    by_register: bool = False,
) -> Float[Array, "B S H d"]:
    """Rotates feature i against feature i + r / 2 (half-split layout), in the table's type.

    A table of r / 2 < d / 2 frequencies leaves the features from r on as they are. `by_register`
    suits TPUs where x comes from a product of rows and goes into the kernel of attention.
    """
    if by_register and x.shape[1] % _SUBLANES == 0:
        # A register holds 8 positions of a head. Rows [B * S, H * d] have their registers in the
        # order of this view, so that nothing is transposed; other layouts cost copies.
        turned = _rotate_whole(_by_register(x), *map(_by_register, table))
        return turned.swapaxes(2, 3).reshape(x.shape)
    cos, sin = table
    half = cos.shape[-1]
    turning = x.astype(cos.dtype)
    first, second = turning[..., :half], turning[..., half : 2 * half]
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return jnp.concatenate([turned.astype(x.dtype), x[..., 2 * half :]], axis=-1)


def _by_register(x: Float[Array, "B S H d"]) -> Float[Array, "B S8 H 8 d"]:
    batch, length, *rest = x.shape
    return x.reshape(batch, length // _SUBLANES, _SUBLANES, *rest).swapaxes(2, 3)


def _rotate_whole(
    x: Float[Array, "*B d"], cos: Float[Array, "*#B d2"], sin: Float[Array, "*#B d2"]
) -> Float[Array, "*B d"]:
    """`rotate` without slices of heads: a product with a permutation swaps their halves."""
    half, rest = cos.shape[-1], x.shape[-1] - 2 * cos.shape[-1]
    order = np.r_[half : 2 * half, :half, 2 * half : x.shape[-1]]
    swap = jnp.asarray(np.eye(x.shape[-1])[:, order], x.dtype)
    exact = jax.lax.Precision.HIGHEST
    swapped = jnp.matmul(x, swap, precision=exact, preferred_element_type=cos.dtype)
    one = jnp.ones((*cos.shape[:-1], rest), cos.dtype)
    cos = jnp.concatenate([cos, cos, one], axis=-1)
    sin = jnp.concatenate([-sin, sin, 0 * one], axis=-1)
    return (x.astype(cos.dtype) * cos + swapped * sin).astype(x.dtype)
