"""The Monte-Carlo likelihood against the sum over all masks."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_unmask import denoisers
from jax_unmask.evaluation import likelihood
from jax_unmask.evaluation.likelihood import Likelihood, stratified_masks

PROMPT, RESPONSE = [1, 2, 3], [4, 1, 2]


@pytest.fixture(scope="module")
def model(model_dir):
    return denoisers.from_pretrained(model_dir)


def exact(denoiser, params):
    """The lower bound by its definition, and its value under each set of masked positions."""
    length, values = len(RESPONSE), {}
    for size in range(1, length + 1):
        for places in itertools.combinations(range(length), size):
            tokens = np.array([PROMPT + RESPONSE], np.int32)
            tokens[0, [len(PROMPT) + place for place in places]] = denoiser.config.mask_token_id
            logits = denoiser.apply({"params": params}, jnp.asarray(tokens))
            log_probs = jax.nn.log_softmax(logits, axis=-1)[0]
            found = [log_probs[len(PROMPT) + place, RESPONSE[place]] for place in places]
            values[places] = length / size * float(sum(found))
    by_size = [[v for p, v in values.items() if len(p) == k] for k in range(1, length + 1)]
    return float(np.mean([np.mean(of) for of in by_size])), values


def test_is_the_bound_of_the_definition(model):
    denoiser, params = model
    bound, values = exact(denoiser, params)
    estimator = Likelihood(denoiser, params, draws=3 * 512, batch_size=3 * 64)
    rows = [row[None] for row in estimator._padded(PROMPT, RESPONSE, 32)]
    key = estimator._key
    (found,) = np.asarray(likelihood._estimates(denoiser, params, *rows, key, 3 * 512, 3 * 64))
    # Every draw is the value of some set of masks, padding or not.
    distances = np.abs(found[:, None] - np.array(list(values.values())))
    assert distances.min(axis=1).max() < 1e-4
    error = np.std(list(values.values())) / math.sqrt(len(found))
    (value,) = estimator.log_likelihoods([(PROMPT, RESPONSE)])
    assert value == pytest.approx(bound, abs=4 * error)
    assert value == pytest.approx(found.mean(), abs=1e-5)


@pytest.mark.thorough
def test_a_response_does_not_depend_on_those_beside_it(model):
    pairs = [(PROMPT, RESPONSE), (PROMPT * 12, RESPONSE), ([1], [2, 3]), (PROMPT, [2])]
    alone = Likelihood(*model, draws=8, batch_size=4)
    together = Likelihood(*model, draws=8, batch_size=4, together=2)
    one_by_one = [alone.log_likelihoods([pair])[0] for pair in pairs]
    assert together.log_likelihoods(pairs) == pytest.approx(one_by_one, rel=1e-5)
    assert together.are_greedy(pairs) == [alone.are_greedy([pair])[0] for pair in pairs]


def test_texts_of_like_length_share_forwards(model, monkeypatch):
    """Three pairs of one width are two batches of two; the one that is wider is one by itself."""
    shapes = []

    def estimates(denoiser, params, tokens, real, wanted, key, draws, batch_size):
        shapes.append(tokens.shape)
        return jnp.zeros((len(tokens), draws))

    monkeypatch.setattr(likelihood, "_estimates", estimates)
    pairs = [(PROMPT, RESPONSE), (PROMPT * 12, RESPONSE), ([1], [2, 3]), (PROMPT, [2])]
    found = Likelihood(*model, draws=4, batch_size=4, together=2).log_likelihoods(pairs)
    assert len(found) == 4
    assert shapes == [(2, 32), (2, 32), (1, 64)]


def test_masks_cover_all_sizes_evenly():
    wanted = jnp.arange(8) >= 4
    masks = np.asarray(stratified_masks(jax.random.key(1), wanted, 16))
    assert not masks[:, :4].any()
    assert np.bincount(masks.sum(axis=1), minlength=5).tolist() == [0, 4, 4, 4, 4]


def test_greedy_is_what_the_model_writes(model):
    denoiser, params = model
    estimator = Likelihood(denoiser, params, draws=1, batch_size=1)
    written = list(PROMPT) + [denoiser.config.mask_token_id] * 3
    for _ in range(3):
        logits = np.array(denoiser.apply({"params": params}, jnp.asarray([written], jnp.int32))[0])
        logits[:, denoiser.config.mask_token_id] = -np.inf
        confidence = jax.nn.softmax(logits).max(axis=-1)
        open_ = [k for k in range(3, 6) if written[k] == denoiser.config.mask_token_id]
        place = max(open_, key=lambda k: confidence[k])
        written[place] = int(logits[place].argmax())
    other = [written[3] % 4 + 1, *written[4:]]
    assert estimator.are_greedy([(PROMPT, written[3:]), (PROMPT, other)]) == [True, False]


def test_says_what_is_wrong(model):
    denoiser, params = model
    with pytest.raises(ValueError, match="multiple of batch_size=3"):
        Likelihood(denoiser, params, draws=4, batch_size=3)
    estimator = Likelihood(denoiser, params, draws=1, batch_size=1)
    with pytest.raises(ValueError, match="response"):
        estimator.log_likelihoods([(PROMPT, [])])
    with pytest.raises(ValueError, match="max_length is 64"):
        estimator.log_likelihoods([([1] * 64, [1])])
