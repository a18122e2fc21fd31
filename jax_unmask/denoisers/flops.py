"""Matrix products of a denoiser, counted exactly from shapes.

A multiplication and an addition are two operations. Norms, softmax and rotations, which are not
matrix products, count nothing.
"""

from jax_unmask.denoisers.config import DenoiserConfig


def forward_flops(config: DenoiserConfig, length: int, scored: int) -> int:
    """Operations of one forward over a whole sequence of `length` positions.

    The layers compute prompt and canvas (padding too), the output projection only what is scored.
    Of positions that are not scored, the last layer computes nothing but keys and values.
    """
    queries = min(scored + config.logits_shift, length)
    return layer_flops(config, length, queries, length) + head_flops(config, scored)


def head_flops(config: DenoiserConfig, positions: int) -> int:
    """Operations of the output projection."""
    return 2 * positions * config.hidden_size * config.vocab_size


def layer_flops(config: DenoiserConfig, length: int, last: int, keys: int) -> int:
    """Operations of all layers for one row.

    Args:
        config: the denoiser.
        length: positions that are computed.
        last: positions of them that the last layer computes.
        keys: positions that each attends to.
    """
    query = config.num_heads * config.head_dim
    key_and_value = 2 * config.num_kv_heads * config.head_dim * config.hidden_size
    # Scores and weighted sum: every query head against every key.
    attention = 2 * keys * query
    total = 0
    for run in config.layer_runs:
        weights = config.hidden_size * (2 * query + _mlp_width(config, run.has_experts))
        for layer in range(run.start, run.stop):
            queries = last if layer == config.num_layers - 1 else length
            total += length * key_and_value + queries * (weights + attention)
    return 2 * total


def _mlp_width(config: DenoiserConfig, has_experts: bool) -> int:
    """Width of the MLP that a token passes through in a layer, or of its router and experts."""
    moe = config.experts
    if moe is None or not has_experts:
        return 3 * config.intermediate_size
    return moe.num_experts + 3 * (moe.per_token * moe.size + moe.shared_size)
