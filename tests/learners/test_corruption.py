"""Masks of training rows: ratios, weights, and the shape of suffix rows."""

import jax
import numpy as np
import pytest

from jax_unmask.learners.sft import Masking, corrupt

BATCH, LENGTH = 512, 12


def draw(masking: Masking, seed: int = 0, batch: int = BATCH):
    out = corrupt(masking, jax.random.key(seed), batch, LENGTH)
    return np.asarray(out.masked), np.asarray(out.weight)


def test_random_rows_weigh_one_over_t():
    masked, weight = draw(Masking(min_ratio=0.05))
    np.testing.assert_array_equal(weight > 0, masked)
    per_row = weight.max(axis=1, keepdims=True)
    np.testing.assert_array_equal(weight, np.where(masked, per_row, 0))
    # E[1[masked] / t] = 1, whatever t is.
    assert weight.mean() == pytest.approx(1.0, abs=0.06)
    ratio = 1 / per_row[masked.any(axis=1)]
    assert ratio.min() > 0.05 and ratio.max() <= 1.0
    share = masked[masked.any(axis=1)].mean(axis=1, keepdims=True)
    assert np.corrcoef(ratio[:, 0], share[:, 0])[0, 1] > 0.85


def test_stratified_ratios_cover_their_range_evenly():
    def ratios(stratified):
        _, weight = draw(Masking(min_ratio=0.5, stratified=stratified), batch=64)
        return np.sort(1 / weight.max(axis=1))

    gaps = np.diff(ratios(True))
    np.testing.assert_allclose(gaps, 0.5 / 64, rtol=1e-3)
    assert np.diff(ratios(False)).max() > 2 * 0.5 / 64


def test_weight_is_limited():
    _, weight = draw(Masking(max_weight=3.0))
    assert weight.max() == 3.0
    assert np.mean(weight == 3.0) > 0.01


def test_suffix_rows_hide_everything_to_the_right():
    masking = Masking(suffix_fraction=1.0, suffix_block_length=4)
    masked, weight = draw(masking)
    blocks = masked.reshape(BATCH, 3, 4)
    seen = set()
    for row in blocks:
        full = row.all(axis=1)
        clear = ~row.any(axis=1)
        open_blocks = [b for b in range(3) if not full[b] and not clear[b]]
        assert len(open_blocks) <= 1
        # Clear blocks first, then at most one open one, then hidden ones.
        kinds = [0 if clear[b] else 1 if b in open_blocks else 2 for b in range(3)]
        assert kinds == sorted(kinds)
        seen |= set(open_blocks)
    assert seen == {0, 1, 2}
    # Every masked token is a target, and a row counts one mean cross-entropy.
    np.testing.assert_array_equal(weight > 0, masked)
    some = masked.any(axis=1)
    np.testing.assert_allclose(weight.sum(axis=1)[some], LENGTH, rtol=1e-5)


def test_suffix_block_rows_train_their_block_alone():
    masking = Masking(
        min_ratio=0.2, suffix_fraction=1.0, suffix_block_length=4, suffix_target="block"
    )
    masked, weight = draw(masking)
    for row_masked, row_weight in zip(masked, weight, strict=True):
        targets = np.flatnonzero(row_weight)
        assert row_masked[targets].all()
        assert len(set(targets // 4)) <= 1
    # Unbiased: each block is drawn with probability 1 / 3 and weighs 3 / t.
    assert weight.mean() == pytest.approx(1.0, abs=0.1)
    by_block = weight.reshape(BATCH, 3, 4).mean(axis=(0, 2))
    np.testing.assert_allclose(by_block, 1.0, atol=0.25)


def test_rows_are_mixed_by_the_fraction():
    masked, _ = draw(Masking(suffix_fraction=0.3, suffix_block_length=1))
    # A suffix row of blocks of one is sorted: clear, then masked. Random rows rarely are.
    is_sorted = (np.diff(masked.astype(int), axis=1) >= 0).all(axis=1)
    pure, _ = draw(Masking())
    chance = (np.diff(pure.astype(int), axis=1) >= 0).all(axis=1).mean()
    assert is_sorted.mean() == pytest.approx(0.3 + 0.7 * chance, abs=0.07)


def test_rows_do_not_depend_on_the_batch():
    masking = Masking(stratified=False, suffix_fraction=0.5, suffix_block_length=4)
    for few, many in zip(draw(masking, batch=3), draw(masking, batch=9), strict=True):
        np.testing.assert_array_equal(few, many[:3])


def test_block_must_divide_the_response():
    with pytest.raises(ValueError, match=r"suffix_block_length=5 .* 12"):
        draw(Masking(suffix_fraction=0.5, suffix_block_length=5))
