import logging
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jax_unmask.runtime.checkpoints import CheckpointError, Checkpoints, CheckpointSettings


def make(scale: float = 1.0):
    """Parameters and training state of the kinds that a run has."""
    params = {
        "layer": {"kernel": jnp.linspace(0, scale, 12).reshape(3, 4), "bias": jnp.ones(4)},
        "head": jnp.full((5,), scale, jnp.bfloat16),
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    state = {
        "opt": optimizer.init(params),
        "step": jnp.int32(7),
        "key": jax.random.key(3),
        "row_keys": jax.random.split(jax.random.key(4), 2),
        "rbg": jax.random.key(5, impl="rbg"),
    }
    return params, state


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def save_steps(workdir, steps):
    with Checkpoints(workdir) as checkpoints:
        for step in steps:
            params, state = make(step)
            assert checkpoints.save(step, params=params, state=state, data={"next": step})


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run with checkpoints of steps 1 and 2; to be copied where it is changed."""
    workdir = tmp_path_factory.mktemp("saved")
    save_steps(workdir, [1, 2])
    return workdir


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def damage(workdir, step, item, how):
    """Harms the largest file of an item."""
    root = workdir / "checkpoints" / str(step) / item
    paths = [path for path in root.rglob("*") if path.is_file() and path.suffix != ".txt"]
    path = max(paths, key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    if how == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif how == "truncate":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.unlink()
    return path.relative_to(root).as_posix()


def test_round_trip_is_bitwise_and_keeps_types(tmp_path):
    params, state = make(math.pi)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(params, state) is None
        assert checkpoints.latest_step() is None
        checkpoints.save(7, params=params, state=state, data=b"\x00\xff")
    abstract = jax.eval_shape(lambda: make(0.0))
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(*abstract)
    assert restored.step == 7
    assert_same(restored.params, params)
    assert_same(restored.state, state)
    assert restored.data == b"\x00\xff"
    np.testing.assert_array_equal(
        jax.random.normal(restored.state["key"], (3,)), jax.random.normal(state["key"], (3,))
    )


def test_arrays_may_be_donated_or_overwritten_right_after_save(tmp_path):
    erase = jax.jit(lambda tree: jax.tree.map(jnp.zeros_like, tree), donate_argnums=0)
    params = {"large": jnp.arange(1 << 20, dtype=jnp.float32)}
    state = {"host": np.arange(1 << 20)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, params=params, state=state)
        erase(params)
        state["host"][:] = 0
        checkpoints.wait()
        restored = checkpoints.restore(
            {"large": jax.ShapeDtypeStruct((1 << 20,), jnp.float32)}, state
        )
    np.testing.assert_array_equal(restored.params["large"], np.arange(1 << 20))
    assert isinstance(restored.state["host"], np.ndarray)
    assert restored.state["host"].dtype == np.int64
    np.testing.assert_array_equal(restored.state["host"], np.arange(1 << 20))


def test_keeps_the_latest_and_the_best(tmp_path):
    params, state = make()
    rewards = {1: 0.1, 2: 0.9, 3: None, 4: math.nan, 5: 0.2}
    with Checkpoints(tmp_path, CheckpointSettings(best_metric="reward")) as checkpoints:
        for step, reward in rewards.items():
            metrics = None if reward is None else {"reward": reward, "other": 1.0}
            assert checkpoints.save(step, params=params, state=state, metrics=metrics)
        checkpoints.wait()
        assert checkpoints.steps() == [2, 4, 5]
        assert checkpoints.latest_step() == 5
        assert checkpoints.restore_params("best")[0] == 2
        assert not checkpoints.save(5, params=params, state=state)
        with pytest.raises(ValueError, match=r"step 3: .*checkpoints .*step 5"):
            checkpoints.save(3, params=params, state=state)
    # Also when another process goes on, for which small values are good.
    options = CheckpointSettings(keep_latest=1, best_metric="reward", best_mode="min")
    with Checkpoints(tmp_path, options) as checkpoints:
        checkpoints.save(7, params=params, state=state, metrics={"reward": 0.3})
        checkpoints.wait()
        assert checkpoints.steps() == [5, 7]


def test_restore_params_reads_no_training_state_and_converts_when_asked(copy):
    for step in (1, 2):
        damage(copy, step, "state", "delete")
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), make()[0])
    with Checkpoints(copy, read_only=True) as checkpoints:
        step, params = checkpoints.restore_params()
        assert step == 2
        assert_same(params, make(2)[0])
        _, params = checkpoints.restore_params(1, like=like)
        assert_same(params, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), make(1)[0]))


@pytest.mark.parametrize(
    ("item", "how"),
    [("params", "flip"), ("state", "truncate"), ("data", "delete"), ("metrics", "truncate")],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(copy, caplog, item, how):
    name = damage(copy, 2, item, how)
    with caplog.at_level(logging.WARNING), Checkpoints(copy) as checkpoints:
        restored = checkpoints.restore(*make())
        assert restored.step == 1
        assert restored.data == {"next": 1}
        assert_same(restored.params, make(1)[0])
        # The run goes on and can save step 2 anew.
        assert checkpoints.save(2, params=make(2)[0], state=make(2)[1])
    assert str(copy / "checkpoints" / "2") in caplog.text
    assert f"{item}/{name}" in caplog.text
    assert (copy / "corrupt_checkpoints" / "2").is_dir()
    with Checkpoints(copy) as checkpoints:
        assert checkpoints.restore(*make()).step == 2


def test_a_read_only_reader_moves_nothing_and_is_quiet(copy, caplog):
    damage(copy, 2, "params", "flip")
    with Checkpoints(copy, read_only=True) as checkpoints:
        with pytest.raises(CheckpointError, match=r"checkpoints/2 is damaged.*Other steps: 1"):
            checkpoints.restore_params()
        assert checkpoints.restore(*make()).step == 1
    assert (copy / "checkpoints" / "2").is_dir()
    assert not (copy / "corrupt_checkpoints").exists()
    assert "read only" not in caplog.text  # Orbax warns of what was asked for.


def test_when_all_are_damaged_it_does_not_start_afresh(copy):
    for step in (1, 2):
        damage(copy, step, "state", "truncate")
    with (
        Checkpoints(copy) as checkpoints,
        pytest.raises(CheckpointError, match=r"all checkpoints .* damaged \(steps \[1, 2\]\)"),
    ):
        checkpoints.restore(*make())


def test_leftovers_of_a_killed_save_are_ignored_and_removed(copy):
    left = copy / "checkpoints" / "2.orbax-checkpoint-tmp"
    (copy / "checkpoints" / "2").rename(left)
    with Checkpoints(copy) as checkpoints:
        assert checkpoints.steps() == [1]
        assert checkpoints.restore(*make()).step == 1
    assert not left.exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p, s: p["layer"].pop("bias"), "params: .*layer/bias"),
        (lambda p, s: p.update(new=jnp.zeros(1)), "params: .*lacks new,"),
        (
            lambda p, s: p["layer"].update(kernel=jnp.zeros((3, 5))),
            r"layer/kernel has shape \(3, 4\), but \(3, 5\) is needed",
        ),
        (lambda p, s: p.update(head=jnp.zeros(5)), "head is bfloat16, but float32 is needed"),
        (lambda p, s: s.update(step=jnp.zeros(2, jnp.int32)), r"step .*\(\).* \(2,\)"),
        (lambda p, s: s.update(rbg=jax.random.key(0)), r"rbg .*\(4,\).* \(2,\)"),
    ],
)
def test_another_models_checkpoint_is_refused_and_left_alone(saved, change, words):
    params, state = make()
    change(params, state)
    with Checkpoints(saved) as checkpoints:
        with pytest.raises(CheckpointError, match=words):
            checkpoints.restore(params, state)
        assert checkpoints.steps() == [1, 2]


def test_missing_checkpoints_are_explained(saved, tmp_path):
    with pytest.raises(CheckpointError, match=f"{tmp_path} .*'checkpoints'"):
        Checkpoints(tmp_path, read_only=True)
    options = CheckpointSettings(best_metric="reward")
    with Checkpoints(saved, options, read_only=True) as checkpoints:
        with pytest.raises(CheckpointError, match="step 5; it has 1, 2"):
            checkpoints.restore_params(5)
        with pytest.raises(CheckpointError, match=f"{saved}.* 'reward'"):
            checkpoints.restore_params("best")


def test_remains_of_an_interrupted_deletion_go(copy, caplog):
    remains = copy / "checkpoints" / "deleted"
    remains.mkdir(exist_ok=True)
    (copy / "checkpoints" / "1").rename(remains / "1")
    with Checkpoints(copy) as checkpoints:
        assert checkpoints.steps() == [2]
        assert not remains.exists()
    assert not caplog.records
    assert not (copy / "corrupt_checkpoints").exists()


def test_a_disk_that_is_full(copy, monkeypatch):
    def fail(*_, **__):
        raise ValueError(
            "RESOURCE_EXHAUSTED: zarr ...\n  No space left on device [os_error_code=28]"
        )

    params, state = make()
    with Checkpoints(copy) as checkpoints:
        monkeypatch.setattr(checkpoints._manager, "save", fail)
        named = (
            r"step 3 cannot be written to .*/checkpoints: No space left on device. Whole are 1, 2"
        )
        with pytest.raises(CheckpointError, match=named):
            checkpoints.save(3, params=params, state=state)
