"""Seconds of a sequence in each layout, estimated from shapes before anything is compiled."""

import heapq

import jax.numpy as jnp
import numpy as np

from jax_unmask.denoisers import DenoiserConfig, count_params
from jax_unmask.rollout import RolloutSettings
from jax_unmask.rollout.flops import rollout_flops
from jax_unmask.runtime.accelerators import Accelerator

_EXPOSED = 0.15
"""Share of gathered weights that products wait for: a layer's first matrix, and the head's."""
VARIES = 0.4
"""Standard deviation of the forwards of rows, of their mean, where slots are compared."""


def seconds_per_sequence(
    shape: DenoiserConfig,
    settings: RolloutSettings,
    prompt_length: int,
    rows: int,
    nfe: int,
    device: Accelerator,
    layout: tuple[int, int, int],
) -> float:
    """Seconds that a rollout takes for each of its sequences, on all devices together.

    A forward takes as long as the longest of its products at the peak, the reading of weights and
    cache, and the gathering of weights (fsdp), most of which the compiler overlaps; and then its
    sums over the tensor axis, which products wait for.

    Args:
        shape, settings, prompt_length: the denoiser and the rollout.
        rows: of a rollout, over all devices.
        nfe: forwards that a row needs.
        device: their type.
        layout: sizes of data, fsdp and tensor.
    """
    data, fsdp, tensor = layout
    groups = data * fsdp
    here = slots_here(settings, prompt_length, rows, groups, device)
    narrow = jnp.dtype(shape.dtype).itemsize
    table = 0 if shape.tie_embeddings else shape.vocab_size * shape.hidden_size
    weights = narrow * (count_params(shape) - table) / tensor
    length, cache = prompt_length + settings.gen_length, settings.cache
    kept = 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * narrow / tensor
    each = rollout_flops(shape, settings, prompt_length, settings.block_length)

    def forward(flops: float, positions: int, cached: int) -> float:
        products = here * flops / tensor / device.flops
        # Gathered weights are written and read once more.
        moved = weights * (1 if fsdp == 1 else 3) + here * cached * kept
        gathered = weights * (fsdp - 1) / fsdp
        residual = here * positions * shape.hidden_size * narrow
        sums = 2 * shape.num_layers * residual * 2 * (tensor - 1) / tensor
        longest = max(products, moved / device.bandwidth, gathered / device.link)
        return longest + (_EXPOSED * gathered + sums) / device.link

    if cache is None:
        shared = 1 - 1 / settings.prompt_rows if settings.shares_first(device) else 0
        return (nfe - shared) * forward(each.full, length, 0) / (here * groups)
    blocks = settings.gen_length // settings.block_length
    window = cache.window(settings.gen_length, settings.block_length)
    full, short = float(blocks), float(max(nfe - blocks, 0))
    whole = length
    if cache.kind == "block":
        prompts = settings.prompt_rows if settings.shares_prompts else 1
        full, short, whole = 1 / prompts, float(nfe + blocks), prompt_length
    elif cache.refresh_every:
        full = max(blocks, nfe // cache.refresh_every)
        short = max(nfe - full, 0)
    took = full * forward(each.full, whole, 0) + short * forward(each.cached, window, length)
    return took / (here * groups)


def slots_here(
    settings: RolloutSettings, prompt_length: int, rows: int, groups: int, device: Accelerator
) -> int:
    """Slots of each of the groups that a rollout's rows are divided into."""
    if settings.slots:
        return -(-min(settings.slots, rows) // groups)
    return settings.slots_of_group(-(-rows // groups), prompt_length, device)


def useful_share(rows: int, slots: int, groups: int, nfe: int) -> float:
    """Share of the forwards that a row needs: slots without a row wait for the last of all groups.

    The mean of some draws of rows whose forwards are normal, and at least a tenth of `nfe`. Each
    takes the first slot of its group that is free.

    Args:
        rows: of a group.
        slots: of a group.
        groups: their number.
        nfe: mean forwards of a row.
    """
    rng, shares = np.random.default_rng(0), []
    for _ in range(50):
        drawn = np.maximum(nfe / 10, rng.normal(nfe, VARIES * nfe, (groups, rows))).round()
        ends = []
        for each in drawn.tolist():
            busy = each[:slots]
            heapq.heapify(busy)
            for forwards in each[slots:]:
                heapq.heapreplace(busy, busy[0] + forwards)
            ends.append(max(busy))
        shares.append(drawn.sum() / (groups * slots * max(ends)))
    return float(np.mean(shares))
