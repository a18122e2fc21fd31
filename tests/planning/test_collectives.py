"""The reader of compiled programs, on pieces of real ones."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest

from jax_unmask.learners.token_log_prob import token_log_prob
from jax_unmask.planning import collectives
from jax_unmask.planning.compiled import Compiled
from jax_unmask.planning.programs import rounds
from jax_unmask.runtime import accelerators

TEXT = """HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  ROOT %sum = f32[] add(%a, %b)
}

%inner (p: (s32[], f32[8,64])) -> (s32[], f32[8,64]) {
  %gather = f32[64,32]{1,0} all-gather(%part), channel_id=2, replica_groups=[4,2]<=[8]
  %alone = f32[4]{0} all-reduce(%x), replica_groups={{0},{1}}, to_apply=%add
  ROOT %t = (s32[], f32[8,64]) tuple(%i, %y)
}

%outer (p: (s32[], f32[8,64])) -> (s32[], f32[8,64]) {
  %loop = (s32[], f32[8,64]) while(%p), condition=%more, body=%inner
  %swap = (f32[4,32]{1,0}, f32[4,32]{1,0}) all-to-all(%a, %b), replica_groups={{0,1},{2,3}}
  ROOT %t = (s32[], f32[8,64]) tuple(%i, %y)
}

%more (p: (s32[], f32[8,64])) -> pred[] {
  ROOT %any = pred[] all-reduce(%flag), replica_groups=mesh['a'=4,'b'=2] {'a'}, to_apply=%add
}

ENTRY %main (w: f32[8,64]) -> f32[8,64] {
  %w = f32[8,64]{1,0} parameter(0)
  %loop.1 = (s32[], f32[8,64]) while(%start), condition=%more, body=%outer
  %u = (bf16[2,3]{1,0}, f32[]) all-reduce(%v), replica_groups=[1,8]<=[8], metadata={op_name="psum"}
  ROOT %out = f32[8,64]{1,0} get-tuple-element(%loop.1), index=1
}
"""


def test_what_is_read():
    found = collectives.collectives(TEXT)
    assert [str(each) for each in found] == [
        "all-reduce bf16[2,3] f32[] among 8",
        "all-reduce pred[] among 4 in 1 loops",
        "all-to-all f32[4,32] f32[4,32] among 2 in 1 loops",
        "all-gather f32[64,32] among 2 in 2 loops",
        "all-reduce pred[] among 4 in 2 loops",
    ]
    assert [each.bytes for each in found] == [16, 1, 1024, 8192, 1]
    assert found[0].name == "psum"


LOOPS = """\
HloModule jit_f, is_scheduled=true

%layer (p: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %g = bf16[16,4]{1,0} all-gather(%x), replica_groups={{0,1}}, dimensions={0}
  ROOT %t = (s32[], bf16[8,4]) tuple(%c, %r)
}

%more (p: (s32[], bf16[8,4])) -> pred[] {
  ROOT %c = pred[] compare(%i, %n), direction=LT
}

%step (p: (pred[], bf16[8,4])) -> (pred[], bf16[8,4]) {
  %w = () while(%i), condition=%more, body=%layer, backend_config={"known_trip_count":{"n":"32"}}
  ROOT %any = pred[] all-reduce(%done), replica_groups={{0,1}}, to_apply=%add
}

%batch (p: (pred[], bf16[8,4])) -> (pred[], bf16[8,4]) {
  %r = f32[5]{0} all-reduce(%y), replica_groups={{0,1}}, to_apply=%add
  ROOT %w = (s32[]) while(%i), condition=%more, body=%step
}

ENTRY %main (x: bf16[8,4]) -> bf16[8,4] {
  %b = () while(%i), condition=%more, body=%batch, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %end = f32[2]{0} all-reduce(%b), replica_groups={{0,1}}, to_apply=%add
}
"""


def test_rounds():
    found = {(each.kind, each.arrays): each for each in collectives.collectives(LOOPS)}
    layer = found["all-gather", ("bf16[16,4]",)]
    # The three batches are outside of the loop over steps: one round of that is what counts.
    assert (layer.loops, layer.part.open_loops, layer.times) == (3, 1, 32)
    step = found["all-reduce", ("pred[]",)]
    assert (step.loops, step.part.open_loops, step.times) == (2, 1, 1)
    batch = found["all-reduce", ("f32[5]",)]
    assert (batch.loops, batch.part.open_loops, batch.times) == (1, 0, 3)
    once = found["all-reduce", ("f32[2]",)]
    assert (once.loops, once.part.open_loops, once.times) == (0, 0, 1)
    assert collectives.received(found.values(), once.part) == (3 * 20 + 8, 3 * 20 + 8)
    assert collectives.received(found.values(), step.part) == (32 * 128 + 1, 32 * 128 + 1)


# An update: chunks of states, in each of them three layers with a loop, and the loop of the head.
NESTED = """\
HloModule jit_f, is_scheduled=true

%ring (p: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %g = bf16[16,4]{1,0} all-gather(%x), replica_groups={{0,1}}, dimensions={0}
  ROOT %t = (s32[], bf16[8,4]) tuple(%c, %r)
}

%layer (p: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %r = f32[3]{0} all-reduce(%y), replica_groups={{0,1}}, to_apply=%add
  ROOT %w.1 = (s32[], bf16[8,4]) while(%i), condition=%more, body=%ring
}

%head (p: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %s = f32[5]{0} all-reduce(%y), replica_groups={{0,1}}, to_apply=%add
  ROOT %w.2 = (s32[], bf16[8,4]) conditional(%due, %x, %x), branch_computations={%nothing, %some}
}

%nothing (p: bf16[8,4]) -> bf16[8,4] {
  ROOT %p = bf16[8,4]{1,0} parameter(0)
}

%some (p: bf16[8,4]) -> bf16[8,4] {
  ROOT %u = f32[7]{0} all-reduce(%y), replica_groups={{0,1}}, to_apply=%add
}

%more (p: (s32[], bf16[8,4])) -> pred[] {
  ROOT %c = pred[] and(%i, %n)
}

%chunk (p: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %l = () while(%i), condition=%more, body=%layer, backend_config={"known_trip_count":{"n":"3"}}
  %h = () while(%i), condition=%more, body=%head
  ROOT %v = f32[11]{0} all-reduce(%y), replica_groups={{0,1}}, to_apply=%add
}

ENTRY %main (x: bf16[8,4]) -> bf16[8,4] {
  %b = () while(%i), condition=%more, body=%chunk
  ROOT %end = f32[2]{0} all-reduce(%b), replica_groups={{0,1}}, to_apply=%add
}
"""


def test_open_loops_within_an_open_loop():
    program = Compiled(NESTED)
    found = collectives.collectives(program)
    within = 3 * 128 + 4 * 5 + 4 * 7
    own = 3 * 12 + 4 * 11
    assert [(each.name, each.bytes) for each in rounds("update", program, found, None)] == [
        ("once", 8),
        ("per chunk of states", own + within),
        ("per chunk of states: loops in it", within),
    ]


# For a GPU: pairs whose first line lists operands, too; one of them waits at once.
STARTED = """\
HloModule jit_f, is_scheduled=true

ENTRY %main (x: bf16[8,4]) -> bf16[8,4] {
  %g = ((bf16[4,8]{1,0}, f32[2]{0}), (bf16[16,8]{1,0}, f32[8]{0})) all-gather-start(%x, %y), replica_groups={{0,1,2,3}}, dimensions={0}, backend_config={"collective_backend_config":{"is_sync":true}}
  %s = ((bf16[16,8]{1,0}), bf16[4,8]{1,0}) reduce-scatter-start(%x), replica_groups={{0,1,2,3}}, dimensions={0}, backend_config={"collective_backend_config":{"is_sync":false}}
  %a = ((bf16[6,8]{1,0}), bf16[6,8]{1,0}) all-to-all-start(%x), replica_groups={{0,1,2,3}}, dimensions={0}
  %p = (bf16[3]{0}, bf16[3]{0}, u32[], u32[]) collective-permute-start(%x), replica_groups={{0,1,2,3}}
  %r = f32[5]{0} all-reduce-start(%x), replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %end = f32[5]{0} all-reduce-done(%r)
}
"""  # noqa: E501


def test_collectives_that_a_gpu_starts():
    found = collectives.collectives(STARTED)
    assert {each.kind: each.arrays for each in found} == {
        "all-gather": ("bf16[16,8]", "f32[8]"),
        "reduce-scatter": ("bf16[4,8]",),
        "all-to-all": ("bf16[6,8]",),
        "collective-permute": ("bf16[3]",),
        "all-reduce": ("f32[5]",),
    }
    assert [each.kind for each in found if not each.overlaps] == ["all-gather"]
    # A sum is scattered over four devices.
    gathered = 256 + 32
    total = gathered + 4 * 64 + 96 + 6 + 20
    assert collectives.received(found, found[0].part) == (total, gathered)


# For a TPU: no trip count, an asynchronous gather in three fusions, a step in a branch.
TPU = """\
HloModule jit_f, is_scheduled=true

%start (p.0: bf16[1,8]) -> (bf16[1,8], bf16[4,8]) {
  %p.0 = bf16[1,8]{1,0:T(8,128)(2,1)} parameter(0)
  %g.1 = bf16[4,8]{1,0} all-gather(%p.0), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %c.1 = (bf16[1,8], bf16[4,8]{1,0:S(1)}) custom-call(%g.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.2 (p.1: bf16[4,8], p.2: bf16[16,4]) -> (bf16[16,8], bf16[4,8]) {
  %p.1 = bf16[4,8]{1,0} parameter(0)
  %p.2 = bf16[16,4]{1,0} parameter(1)
  %g.2 = bf16[4,8]{1,0} all-gather(%p.1), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %t.2 = (bf16[16,8]{1,0}, bf16[4,8]{1,0}) tuple(%p.2, %g.2)
}

%done (p.3: bf16[4,8]) -> bf16[4,8] {
  %p.3 = bf16[4,8]{1,0} parameter(0)
  %g.3 = bf16[4,8]{1,0} all-gather(%p.3), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %c.3 = bf16[4,8]{1,0} custom-call(%g.3), custom_call_target="AsyncCollectiveDone"
}

%layer (p: (s32[], bf16[1,8])) -> (s32[], bf16[1,8]) {
  %s = (bf16[1,8]{1,0}, bf16[4,8]{1,0:S(1)}) fusion(%w), kind=kLoop, calls=%start
  %f = (bf16[16,8]{1,0}, bf16[4,8]{1,0}) fusion(%s, %x), kind=kOutput, calls=%async_collective_fusion.2, metadata={op_name="jit(f)/DenoiserBlock/up/dot_general"}, backend_config={"window_config":{"estimated_cycles":"3000"}}
  %d = bf16[4,8]{1,0} fusion(%f), kind=kLoop, calls=%done
  %now = bf16[2,8]{1,0} all-gather(%w), channel_id=8, replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %t = (s32[], bf16[1,8]) tuple(%i, %w)
}

%few (p: (s32[], bf16[1,8])) -> pred[] {
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %n = s32[]{:T(128)} constant(32)
  ROOT %c = pred[]{:T(512)} compare(%i, %n), direction=LT
}

%forward (p: bf16[1,8]) -> bf16[1,8] {
  %loop.2 = (s32[], bf16[1,8]) while(%start), condition=%few, body=%layer
  ROOT %out = bf16[1,8]{1,0} get-tuple-element(%loop.2), index=1
}

%nothing (p: bf16[1,8]) -> bf16[1,8] {
  ROOT %p = bf16[1,8]{1,0} parameter(0)
}

%step (p: (s32[], bf16[1,8])) -> (s32[], bf16[1,8]) {
  %b = bf16[1,8]{1,0} conditional(%due, %x, %x), branch_computations={%nothing, %forward}
  ROOT %t = (s32[], bf16[1,8]) tuple(%i, %b)
}

%eight (p: (s32[], bf16[1,8])) -> pred[] {
  %n = s32[]{:T(128)} constant(8)
  ROOT %c = pred[]{:T(512)} compare(%i, %n), direction=LT
}

%chunk (p: (pred[], bf16[1,8])) -> (pred[], bf16[1,8]) {
  %loop.3 = (s32[], bf16[1,8]) while(%start), condition=%eight, body=%step
  %a = pred[]{:T(512)} all-reduce(%done), channel_id=9, replica_groups=[1,4]<=[4], to_apply=%or
  ROOT %t = (pred[], bf16[1,8]) tuple(%a, %b)
}

%any (p: (pred[], bf16[1,8])) -> pred[] {
  %n = s32[]{:T(128)} constant(5)
  %c = pred[]{:T(512)} compare(%i, %n), direction=LT
  ROOT %both = pred[]{:T(512)} and(%c, %left)
}

ENTRY %main (x: bf16[1,8]) -> bf16[1,8] {
  %loop.4 = (pred[], bf16[1,8]) while(%start), condition=%any, body=%chunk
  ROOT %out = bf16[1,8]{1,0} get-tuple-element(%loop.4), index=1
}
"""  # noqa: E501


def test_a_forward_of_a_rollout_on_a_tpu():
    program = Compiled(TPU)
    assert [(part.kind, part.times) for part in program.parts] == [
        ("program", 1),
        ("loop", 1),
        ("branch", 8),
    ]
    found = collectives.collectives(program)
    gather, gather_now = (each for each in found if each.kind == "all-gather")
    assert [each.overlaps for each in (gather, gather_now)] == [False, True]
    assert [each.times for each in (gather, gather_now)] == [32, 32]
    v5e = accelerators.parse("v5e-4")[0]
    once, forward = rounds("rollout", program, found, v5e)
    assert (once.name, once.bytes) == ("once", 0)
    assert (forward.name, forward.bytes, forward.exposed) == ("per forward", 32 * 96, 32 * 32)
    took = 32 * 3000 / 1.5e9
    assert forward.seconds == {"products of layers": pytest.approx(took)}
    assert forward.longest(1e9) == pytest.approx(took + 32 * 96e-9)
    assert forward.shortest(1e9) == pytest.approx(took + 32 * 32e-9)


@pytest.mark.parametrize("cycles", [2**63 - 1, 2**63 - 1 - 2000])
def test_an_operation_without_an_estimate_takes_no_time(cycles):
    text = TPU.replace('"estimated_cycles":"3000"', f'"estimated_cycles":"{cycles}"')
    program = Compiled(text)
    for each in rounds("rollout", program, (), accelerators.parse("v5e-4")[0]):
        assert each.seconds == {}


SCATTER = """\
HloModule jit_f, is_scheduled=true

%all-reduce-scatter.1 (input: bf16[8,4]) -> bf16[2,4] {
  %input = bf16[8,4]{1,0} parameter(0)
  %sum = bf16[8,4]{1,0} all-reduce(%input), channel_id=6, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %own = bf16[2,4]{1,0} dynamic-slice(%sum, %at, %zero), dynamic_slice_sizes={2,4}
}

ENTRY %main (x: bf16[8,4]) -> bf16[2,4] {
  %x = bf16[8,4]{1,0} parameter(0)
  ROOT %f = bf16[2,4]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_reduce_scatter_of_a_tpu():
    (found,) = collectives.collectives(SCATTER)
    assert (str(found), found.bytes) == ("reduce-scatter bf16[2,4] among 4", 16)
    assert collectives.received([found], found.part) == (64, 64)


# For a GPU: a product with one layer of stacked weights.
GPU = """\
HloModule jit_f, is_scheduled=true

%fused (p.0: bf16[32,8,4], p.1: bf16[16,8]) -> bf16[16,4] {
  %p.0 = bf16[32,8,4]{2,1,0} parameter(0)
  %b = bf16[32,8,4]{2,1,0} bitcast(%p.0)
  %s = bf16[1,8,4]{2,1,0} slice(%b), slice={[3:4], [0:8], [0:4]}
  %w = bf16[8,4]{1,0} bitcast(%s)
  %p.1 = bf16[16,8]{1,0} parameter(1)
  ROOT %d = bf16[16,4]{1,0} dot(%p.1, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main (stack: bf16[32,8,4], x: bf16[16,8]) -> bf16[16,4] {
  %stack = bf16[32,8,4]{2,1,0} parameter(0)
  %x = bf16[16,8]{1,0} parameter(1)
  ROOT %y = bf16[16,4]{1,0} fusion(%stack, %x), kind=kCustom, calls=%fused
}
"""


def test_an_operation_on_a_gpu_reads_its_layer_alone():
    program, h100 = Compiled(GPU), accelerators.parse("h100x1")[0]
    (once,) = rounds("update", program, (), h100)
    moved = 2 * (8 * 4 + 16 * 8 + 16 * 4)
    assert once.seconds == {"rest": pytest.approx(moved / h100.bandwidth)}
    slow = dataclasses.replace(h100, flops=1.0)
    (once,) = rounds("update", program, (), slow)
    assert once.seconds == {"rest": pytest.approx(2 * 16 * 8 * 4)}


# For a GPU: rows put into one layer of a cache, which stays where it is; rows of a table.
IN_PLACE = """\
HloModule jit_f, is_scheduled=true

%rows (p.0: bf16[32,8,64], p.1: s32[2,2], p.2: bf16[2,64], p.3: bf16[4]) -> (bf16[32,8,64], bf16[4]) {
  %p.0 = bf16[32,8,64]{2,1,0} parameter(0)
  %p.1 = s32[2,2]{1,0} parameter(1)
  %p.2 = bf16[2,64]{1,0} parameter(2)
  %p.3 = bf16[4]{0} parameter(3)
  %put = bf16[32,8,64]{2,1,0} scatter(%p.0, %p.1, %p.2), to_apply=%second
  ROOT %t = (bf16[32,8,64]{2,1,0}, bf16[4]{0}) tuple(%put, %p.3)
}

%some (p.4: bf16[1024,64], p.5: s32[2]) -> bf16[2,64] {
  %p.4 = bf16[1024,64]{1,0} parameter(0)
  %p.5 = s32[2]{0} parameter(1)
  ROOT %found = bf16[2,64]{1,0} gather(%p.4, %p.5), slice_sizes={1,64}
}

ENTRY %main (stack: bf16[32,8,64], at: s32[2,2], new: bf16[2,64], x: bf16[4], table: bf16[1024,64], ids: s32[2]) -> bf16[32,8,64] {
  %stack = bf16[32,8,64]{2,1,0} parameter(0)
  %at = s32[2,2]{1,0} parameter(1)
  %new = bf16[2,64]{1,0} parameter(2)
  %x = bf16[4]{0} parameter(3)
  %table = bf16[1024,64]{1,0} parameter(4)
  %ids = s32[2]{0} parameter(5)
  %y = (bf16[32,8,64]{2,1,0}, bf16[4]{0}) fusion(%stack, %at, %new, %x), kind=kInput, calls=%rows, metadata={op_name="jit(f)/while/body/closed_call/vmap()/scatter"}
  %e = bf16[2,64]{1,0} fusion(%table, %ids), kind=kLoop, calls=%some, metadata={op_name="jit(f)/while/body/head/while/body/closed_call/jit(_take)/gather"}
  ROOT %z = bf16[32,8,64]{2,1,0} scatter(%stack, %at, %new), to_apply=%second, metadata={op_name="jit(f)/while/body/closed_call/vmap()/scatter"}
}
"""  # noqa: E501


def test_what_a_gpu_puts_into_an_array_leaves_the_rest_of_it():
    h100 = accelerators.parse("h100x1")[0]
    (once,) = rounds("rollout", Compiled(IN_PLACE), (), h100)
    rows, index = 2 * 2 * 64, 4 * 2 * 2
    put = 2 * (2 * rows + index) + 2 * 2 * 4  # By each of the two, and the other result.
    assert once.seconds == {
        "slices of stacks": pytest.approx(put / h100.bandwidth),
        "head": pytest.approx((2 * rows + 4 * 2) / h100.bandwidth),
    }


def test_products_of_the_vocabulary_are_the_head():
    """In loops over positions, forwards and backwards."""

    def loss(table, hidden):
        labels = jnp.arange(64)
        return token_log_prob(table, hidden, labels, labels >= 0, 16).sum()

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((256, 32), (64, 32))]
    lowered = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*shapes)
    # Not compiled: a program that the cache has from before names have changed keeps the old ones.
    sources = re.findall(r'loc\("([^"]*dot_general)"', lowered.as_text(debug_info=True))
    assert len(sources) >= 3
    assert all(re.search(r"\bhead\b", source) for source in sources), sources


def test_a_kernel_on_a_tpu_takes_as_long_as_its_work():
    v6e = accelerators.parse("v6e-1")[0]
    stated = '{"flops":"918000000","transcendentals":"4096","bytes_accessed":"8"}'
    text = f"""HloModule jit_f, is_scheduled=true

ENTRY %main (x: bf16[8,8]) -> bf16[8,8] {{
  %x = bf16[8,8]{{1,0}} parameter(0)
  ROOT %y = bf16[8,8]{{1,0}} custom-call(%x), custom_call_target="tpu_custom_call", backend_config={{"cost_estimate":{stated}}}
}}
"""  # noqa: E501
    (once,) = rounds("update", Compiled(text), (), v6e)
    # A microsecond of products, then ten vector operations for each lane.
    assert once.seconds == {"attention": pytest.approx(1e-6 + 10 / 1.75e9)}
