"""results.jsonl survives whatever happens to the process that writes it."""

import json
import math

import numpy as np
import pytest

from jax_unmask.evaluation.store import ResultStore, read_outcomes

CORRECT, NFE = np.array([1, 0, 0.5], np.float32), np.array([3, 4, 16])


def filled(directory, count=3):
    store = ResultStore(directory)
    for k in range(count):
        store.append({"key": f"k{k}", "accuracy": 0.1 * k}, CORRECT, NFE)
    return store


def test_rows_come_back(tmp_path):
    written = filled(tmp_path).rows
    assert ResultStore(tmp_path).rows == written
    assert list(written) == ["k0", "k1", "k2"]


def test_outcomes_come_back(tmp_path):
    row = filled(tmp_path, 1).rows["k0"]
    correct, nfe = read_outcomes(tmp_path, row)
    np.testing.assert_array_equal(correct, CORRECT)
    np.testing.assert_array_equal(nfe, NFE)


def test_outcomes_that_were_not_kept_are_none(tmp_path):
    row = filled(tmp_path, 1).rows["k0"]
    (tmp_path / row["outcomes"]).unlink()
    assert read_outcomes(tmp_path, row) is None
    assert read_outcomes(tmp_path, {}) is None


def test_cuts_off_a_torn_line_and_goes_on(tmp_path):
    path = filled(tmp_path).path
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    store = ResultStore(tmp_path)
    assert list(store.rows) == ["k0", "k1"]
    store.append({"key": "k2", "accuracy": 0.2}, CORRECT, NFE)
    assert path.read_bytes() == whole


def test_names_a_damaged_line(tmp_path):
    path = filled(tmp_path).path
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"{oops\n" + lines[2])
    with pytest.raises(ValueError, match=r"results\.jsonl, line 2: expected a JSON object"):
        ResultStore(tmp_path)


def test_a_file_without_rows_is_no_file(tmp_path):
    assert ResultStore(tmp_path).rows == {}


def test_what_json_cannot_say_is_null(tmp_path):
    store = ResultStore(tmp_path)
    store.append({"key": "k", "accuracy_se": math.nan}, CORRECT, NFE)
    assert json.loads(store.path.read_text())["accuracy_se"] is None


def test_refuses_a_key_twice(tmp_path):
    with pytest.raises(ValueError, match="key k0 already"):
        filled(tmp_path, 1).append({"key": "k0"}, CORRECT, NFE)
