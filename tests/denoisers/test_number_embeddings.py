import jax
import numpy as np
import pytest

from jax_unmask.denoisers.number_embeddings import with_values

KEY = jax.random.key(0)


def params(width, names=("embedding", "head")):
    return {name: jax.random.normal(KEY, (210, width)) for name in names}


def test_a_number_is_nearest_to_itself_and_as_large_as_other_tokens():
    numbers = {3 + value: value for value in range(200)}
    changed = with_values(params(64), numbers, KEY)
    rows = np.asarray(changed["embedding"])[3:203]
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 64**0.5, rtol=1e-4)
    assert (np.argmax(rows @ np.asarray(changed["head"])[3:203].T, axis=1) == range(200)).all()


def test_other_tokens_and_tied_embeddings_are_kept():
    before = params(32, ("embedding",))
    after = with_values(before, {5: 7}, KEY)
    assert set(after) == {"embedding"}
    kept = np.arange(210) != 5
    np.testing.assert_array_equal(after["embedding"][kept], before["embedding"][kept])
    assert (np.asarray(after["embedding"][5]) != np.asarray(before["embedding"][5])).all()


def test_too_narrow_a_model_is_refused():
    with pytest.raises(ValueError, match="at least 24, found 16"):
        with_values(params(16), {5: 7}, KEY)
