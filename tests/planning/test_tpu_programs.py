"""Programs of two layers, compiled for TPUs that are not there, hold no more than they need.

`python tests/planning/test_tpu_programs.py` writes `tpu_programs.json` anew.
"""

import collections
import contextlib
import functools
import importlib.util
import itertools
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jax_unmask import denoisers, policies, recipes
from jax_unmask.denoisers import head, tpu_head
from jax_unmask.denoisers.attention import attention
from jax_unmask.denoisers.config import DenoiserConfig
from jax_unmask.denoisers.positions import block_causal, default_positions
from jax_unmask.denoisers.sharding import RULES
from jax_unmask.learners.token_log_prob import token_log_prob
from jax_unmask.planning import compilers
from jax_unmask.planning.collectives import collectives
from jax_unmask.planning.compiled import Compiled
from jax_unmask.planning.programs import Program
from jax_unmask.recipes import layout
from jax_unmask.recipes.base import TracedProgram, prompt_shapes
from jax_unmask.rollout import RolloutSettings, rollout
from jax_unmask.runtime import accelerators
from jax_unmask.runtime import mesh as meshes
from jax_unmask.runtime import placement as placements

EXPECTED = pathlib.Path(__file__).with_name("tpu_programs.json")
ROWS, PROMPT, CANVAS, BLOCK, LAYERS, WIDTH, VOCABULARY = 8, 40, 48, 16, 2, 512, 8192

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="needs a TPU's compiler: pip install 'jax_unmask[aot]'",
)

_SETTINGS = {
    "mesh.fsdp": 1,
    "model.path": "made here",
    "model.param_dtype": "bfloat16",
    "task.prompt_length": PROMPT,
    "rollout.gen_length": CANVAS,
    "rollout.block_length": BLOCK,
    "rollout.prompts_per_step": 4,
    "rollout.group_size": ROWS // 4,
    "rollout.vocab_chunk": VOCABULARY // 4,
}
_TRAINED = _SETTINGS | {"model.param_dtype": "float32"}
_SFT = {
    "mesh.fsdp": 1,
    "model.path": "made here",
    "task.prompt_length": PROMPT,
    "data.batch_size": ROWS,
    "data.gen_length": CANVAS,
    "learner.positions_per_chunk": BLOCK,
}
PROGRAMS = {
    "rollout": ("policy_grpo", "rollout", _SETTINGS),
    "rollout, prefix cache": ("policy_grpo", "rollout", _SETTINGS | {"rollout.cache": "prefix"}),
    "rollout, dual cache": ("policy_grpo", "rollout", _SETTINGS | {"rollout.cache": "dual"}),
    "rollout, block cache": ("tracerl", "rollout", _TRAINED | {"rollout.cache": "block"}),
    "rollout, int8": ("policy_grpo", "rollout", _SETTINGS | {"model.quantization": "int8"}),
    "policy update": ("policy_grpo", "update", _SETTINGS),
    "TraceRL update": ("tracerl", "update", _TRAINED | {"value.enabled": False}),
    "SFT update": ("sft", "update", _SFT),
    "generate": (None, "generate", _SETTINGS),
}
DEVICES = ("v5e-1", "v5e-4", "v6e-1", "v6e-4")
FAST = {("rollout", "v5e-4")}
"""Programs that compile in the default suite."""
CASES = [
    pytest.param(name, devices, marks=() if (name, devices) in FAST else pytest.mark.slow)
    for name in PROGRAMS
    for devices in DEVICES
]


def shape_of(settings, blocks):
    """A denoiser whose matrices have shapes that no other array has."""
    return DenoiserConfig(
        family="sdar" if blocks else "llada",
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_layers=LAYERS,
        num_heads=4,
        num_kv_heads=4,
        head_dim=128,
        intermediate_size=3 * WIDTH,
        rope_theta=1e4,
        norm_eps=1e-5,
        max_length=PROMPT + CANVAS,
        tie_embeddings=False,
        mask_token_id=VOCABULARY - 1,
        eos_token_id=VOCABULARY - 2,
        pad_token_id=VOCABULARY - 2,
        qk_norm=blocks,
        attention_block=BLOCK if blocks else None,
        dtype=jnp.bfloat16,
        param_dtype=settings.model.param_dtype if settings else "bfloat16",
    )


def traced(name, fsdp=2, tensor=2):
    """The program of a name, for the devices that are looked at."""
    recipe_name, wanted, changes = PROGRAMS[name]
    config = recipes.config(recipe_name or "policy_grpo")
    config.update_from_flattened_dict(changes)
    if len(accelerators.devices()) > 1:
        config.mesh.update(fsdp=fsdp, tensor=tensor)
    if name == "TraceRL update":
        config.learner.chunk_size = max(2, len(accelerators.devices()) // tensor)
    settings = recipes.read(config)
    shape, placement = shape_of(settings, "block cache" in name), placements.from_config(settings)
    if wanted == "generate":
        return generating(shape, placement)
    programs = recipes.find(recipe_name).blueprint(settings, shape, placement).programs
    return next(each for each in programs if each.name == wanted)


def generating(shape, placement):
    """One answer, with records for `--trace`."""
    policy, params = policies.parse_policy("threshold:threshold=0.9")
    weights = placement.parameters(denoisers.abstract_params(shape), RULES)
    settings = RolloutSettings(gen_length=CANVAS, block_length=BLOCK, record=True)
    with placement.active():
        prompts, keys = prompt_shapes(placement, placement.shards, PROMPT)
        params = placement.everywhere(jax.eval_shape(lambda: jax.tree.map(jnp.asarray, params)))
        lowered = rollout.lower(
            denoisers.Denoiser(shape), weights, policy, params, prompts, keys, settings
        )
    return TracedProgram("rollout", lowered)


@contextlib.contextmanager
def hurried():
    """Compiles with little effort; JAX from 0.12 on has levels instead."""
    name, value = "jax_exec_time_optimization_effort", -1.0
    if not hasattr(jax.config, name):
        name, value = "jax_optimization_level", "O1"
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        assert compilers.has_little_effort()
        yield
    finally:
        jax.config.update(name, before)


@functools.cache
def compiled(name, devices):
    """The program, compiled in a hurry: its arrays are those of the final one, its speed is not."""
    device, count = accelerators.parse(devices)
    compiler = compilers.find(device, count)
    with hurried(), compiler.active():
        return Program.of(traced(name), compiled=True, options=compiler.options)


@functools.cache
def parts(name, devices):
    return Compiled(compiled(name, devices).text).parts


def arrays(name, devices):
    """Every array in memory, with the operation that makes it: fusions hide those that are not."""
    for part in parts(name, devices):
        for each, _, _ in part.instructions:
            for array in each.result:
                yield each, array


def shards(count):
    """Sizes of a dimension over so many devices."""
    return {count // parts for parts in ((1, 2) if count % 2 == 0 else (1,))}


def matrices():
    """Shapes of one layer's matrices, whole or in shards, in any order of dimensions."""
    pairs = [(WIDTH, WIDTH), (WIDTH, 3 * WIDTH)]
    return {
        tuple(sorted((first, second)))
        for rows, columns in pairs
        for first in shards(rows)
        for second in shards(columns)
    }


def is_matrix(array):
    """It has the shape of a matrix of one layer, or of several."""
    dimensions = sorted(size for size in array.shape if size > LAYERS)
    return tuple(dimensions) in matrices()


def summary(name, devices):
    """Collectives, and copies of stacked matrices."""
    program = compiled(name, devices)
    lines = collections.Counter(map(str, program.collectives))
    stacks = collections.Counter(
        f"{each.operation} {array}"
        for each, array in arrays(name, devices)
        if each.operation in ("copy", "copy-start", "transpose", "all-gather")
        and array.shape[:1] == (LAYERS,)
        and not array.is_near
        and is_matrix(array)
    )
    return {
        "collectives": [f"{count} x {line}" for line, count in sorted(lines.items())],
        "copies of stacks": [f"{count} x {line}" for line, count in sorted(stacks.items())],
    }


@pytest.mark.parametrize(("name", "devices"), CASES)
@pytest.mark.thorough
def test_no_collective_and_no_copy_of_a_stack_that_was_not_there(name, devices):
    assert summary(name, devices) == json.loads(EXPECTED.read_text())[f"{name} on {devices}"]


@pytest.mark.parametrize(("name", "devices"), CASES)
def test_the_compiler_tells_arguments_and_peak(name, devices):
    program = compiled(name, devices)
    # Small arrays are padded.
    assert 0.99 < program.argument_bytes / program.shaped_bytes < 1.2
    assert program.argument_bytes <= program.peak_bytes


def test_every_program_has_its_list():
    """Without one, the test above would compare with nothing: run this file."""
    named = {f"{name} on {devices}" for name in PROGRAMS for devices in DEVICES}
    assert set(json.loads(EXPECTED.read_text())) == named


@pytest.mark.parametrize(("name", "devices"), CASES)
def test_no_logits_of_a_whole_canvas_and_vocabulary(name, devices):
    count = accelerators.parse(devices)[1]
    rows = 1 if name == "generate" else ROWS // (2 if count > 1 else 1)
    columns = VOCABULARY // (2 if count > 1 else 1)
    for each, array in arrays(name, devices):
        is_table = WIDTH in array.shape or WIDTH // 2 in array.shape
        wide = any(size and size % columns == 0 for size in array.shape)
        if wide and not is_table:
            assert math.prod(array.shape) < rows * CANVAS * columns, each.line[:300]


@pytest.mark.parametrize(
    ("name", "devices"),
    # TraceRL's block cache has float32 weights beside those of its rollouts.
    [case for case in CASES if PROGRAMS[case.values[0]][2].get("model.param_dtype") == "bfloat16"],
)
def test_weights_are_not_widened(name, devices):
    for each, array in arrays(name, devices):
        if array.type == "f32" and is_matrix(array):
            raise AssertionError(each.line[:300])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "queries", "gradients"), [("v6e-1", 457, False), ("v5e-4", 301, True)]
)
def test_scores_of_attention_stay_in_a_kernel(devices, queries, gradients, monkeypatch):
    """Odd lengths, padding and blocks, grouped heads; on a mesh, too."""
    monkeypatch.setenv("JAX_UNMASK_ATTENTION", "flash")
    device, count = accelerators.parse(devices)
    compiler = compilers.find(device, count)

    def attend(query, key, value, real):
        bounds = block_causal(default_positions(real, 457), 4, real)
        bounds = bounds.replace(label=bounds.label[:, -queries:])
        return attention(query, key, value, bounds, fused=True)

    def loss(*inputs):
        return (attend(*inputs).astype(jnp.float32) ** 2).sum()

    with compiler.active():
        mesh = meshes.make_mesh(1, 2 if count > 1 else 1, 2 if count > 1 else 1)

        def shape(*sizes, dtype=jnp.bfloat16):
            return jax.ShapeDtypeStruct(sizes, dtype, sharding=NamedSharding(mesh, PartitionSpec()))

        keys = shape(2, 457, 2, 128)
        inputs = (shape(2, queries, 4, 128), keys, keys, shape(2, 457, dtype=bool))
        function = jax.grad(loss, argnums=(0, 1, 2)) if gradients else attend
        with jax.set_mesh(mesh):
            lowered = jax.jit(function).lower(*inputs)
        text = lowered.compile(compiler_options=dict(compiler.options)).as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 1 + gradients
    for part in Compiled(text).parts:
        for each, _, _ in part.instructions:
            assert all(array.shape[-1:] != (457,) or array.type != "f32" for array in each.result)


@pytest.mark.parametrize("fsdp", [1, 2])
def test_copies_of_a_model_train_with_the_kernel(fsdp, monkeypatch):
    """Lowering it is enough: kernels are refused there."""
    monkeypatch.setenv("JAX_UNMASK_ATTENTION", "flash")
    device, count = accelerators.parse("v5e-4")
    with compilers.find(device, count).active():
        text = traced("TraceRL update", fsdp, tensor=1).lowered.as_text()
    assert "tpu_custom_call" in text


@pytest.mark.slow
@pytest.mark.parametrize("devices", ["v6e-1", "v5e-4"])
def test_logits_stay_in_a_kernel(devices):
    """The head's arrays have as many tokens as a register has lanes, or as the table has rows."""
    device, count = accelerators.parse(devices)
    compiler, denoiser = compilers.find(device, count), denoisers.Denoiser(shape_of(None, False))
    with compiler.active():
        mesh = meshes.make_mesh(2 if count > 1 else 1, 1, 2 if count > 1 else 1)

        def shape(*sizes):
            where = NamedSharding(mesh, PartitionSpec())
            return jax.ShapeDtypeStruct(sizes, jnp.bfloat16, sharding=where)

        def score(table, hidden):
            options = {"top_k": 2, "entropy": True, "vocab_chunk": VOCABULARY // 4}
            return head.score_candidates(denoiser, {"head": table}, hidden, None, **options)

        with jax.set_mesh(mesh):
            lowered = jax.jit(score).lower(shape(VOCABULARY, WIDTH), shape(ROWS, 137, WIDTH))
        text = lowered.compile(compiler_options=dict(compiler.options)).as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 1
    for part in Compiled(text).parts:
        for each, _, _ in part.instructions:
            for array in each.result:
                assert WIDTH in array.shape or max(array.shape, default=0) <= ROWS * 137, each.line
                assert array.bytes <= ROWS * 137 * 4 * 2 * tpu_head.LANES or WIDTH in array.shape


@pytest.mark.slow
def test_gradient_of_the_head_is_scattered_once():
    """Not at every chunk of positions, and never summed whole on every device."""
    device, count = accelerators.parse("v5e-4")
    compiler = compilers.find(device, count)
    with compiler.active():
        mesh = meshes.make_mesh(1, 2, 2)

        def shape(dtype, spec, *sizes):
            return jax.ShapeDtypeStruct(sizes, dtype, sharding=NamedSharding(mesh, spec))

        table = shape(jnp.float32, PartitionSpec("tensor", "fsdp"), VOCABULARY, WIDTH)
        hidden = shape(jnp.bfloat16, PartitionSpec("fsdp"), ROWS * CANVAS, WIDTH)
        labels = shape(jnp.int32, PartitionSpec("fsdp"), ROWS * CANVAS)
        loss = lambda table, *rows: token_log_prob(table, *rows, rows[1] > 0, 64).sum()
        with jax.set_mesh(mesh):
            lowered = jax.jit(jax.grad(loss)).lower(table, hidden, labels)
        text = lowered.compile(compiler_options=dict(compiler.options)).as_text()
    size = VOCABULARY * WIDTH // 2
    sums = [each for each in collectives(text) if each.kind in ("all-reduce", "reduce-scatter")]
    large = [str(each) for each in sums if each.bytes >= size]
    assert large == [f"reduce-scatter f32[{VOCABULARY // 2},{WIDTH // 2}] among 2"]


@pytest.mark.parametrize("devices", ["v4-2", "v4-8", "v5e-4", "v5p-8", "v6e-4"])
def test_every_type_of_tpu_has_its_compiler(devices):
    device, count = accelerators.parse(devices)
    found = compilers.find(device, count).devices
    assert len({tuple(each.coords) for each in found}) == len(found) == count
    with accelerators.absent(found):
        assert accelerators.here() is device
        where = NamedSharding(meshes.make_mesh(), PartitionSpec("data"))
    x = jax.ShapeDtypeStruct((512, 128), jnp.bfloat16, sharding=where)
    memory = jax.jit(lambda x: x + 1).lower(x).compile().memory_analysis()
    assert memory.argument_size_in_bytes == 2 * 512 * 128 // count


def hops(order):
    """Links between neighbours on data and on fsdp, the mean of all."""
    places = np.array([each.coords for each in order.flat]).reshape(*order.shape, 3)
    steps = [np.abs(np.diff(places, axis=axis)).sum(axis=-1).ravel() for axis in (0, 1)]
    return np.concatenate(steps).mean() if order.shape[:2] != (1, 1) else 0.0


def is_by_process(order):
    """Whether the shards of a process, or of several that have the same rows, follow each other."""
    parts = order.reshape(-1, order.shape[2])
    owners = [frozenset(each.process_index for each in part) for part in parts]
    runs = [owner for owner, _ in itertools.groupby(owners)]
    return sum(map(len, runs)) == len({each.process_index for each in order.flat})


@pytest.mark.parametrize("devices", ["v5e-8", "v5e-16", "v6e-32", "v5p-16", "v5p-32"])
def test_every_layout_lies_over_the_network(devices):
    device, count = accelerators.parse(devices)
    with compilers.find(device, count).active():
        for shape in layout._layouts():
            made = meshes.make_mesh(*shape).devices
            nearest = meshes.over_network(shape, accelerators.devices())
            assert is_by_process(made), shape
            assert hops(made) <= 1.7 * hops(nearest), shape
            if is_by_process(nearest):
                assert (made == nearest).all(), shape


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "model"),
    [("gsm8k", "llada"), ("tracerl_large", "dream"), ("tracerl_large", "sdar-8b")],
)
def test_published_models_fit_sixteen_chips(config, model):
    """At full size; only memory is looked at."""
    from jax_unmask.commands.plan import plan

    directory = pathlib.Path(__file__).parents[2] / "configs"
    namespace: dict = {}
    exec((directory / f"{config}.py").read_text(), namespace)
    made = namespace["get_config"](*(() if model == "llada" else (f"{model},math",)))
    if model != "llada":
        made.learner.chunk_size = 16
        made.rollout.slots = 64
    device, count = accelerators.parse("v6e-16")
    compiler = compilers.find(device, count)
    with hurried():
        found = plan(made, compile_programs=True, device=device, compiler=compiler)
    assert found.fits, found.table()


if __name__ == "__main__":
    import sys

    jax.config.update("jax_platforms", "cpu")
    found = json.loads(EXPECTED.read_text()) if EXPECTED.exists() else {}
    for case in CASES:
        name, devices = case.values
        if not sys.argv[1:] or any(each in f"{name} on {devices}" for each in sys.argv[1:]):
            found[f"{name} on {devices}"] = summary(name, devices)
            print(name, devices, compiled(name, devices).seconds_to_compile, flush=True)
            EXPECTED.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n")
