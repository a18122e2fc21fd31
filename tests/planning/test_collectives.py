"""The reader of compiled programs, on pieces of real ones."""

from __future__ import annotations

from jax_unmask.planning import collectives

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
    assert (layer.loops, layer.open_loops, layer.times) == (3, 1, 32)
    step = found["all-reduce", ("pred[]",)]
    assert (step.loops, step.open_loops, step.times) == (2, 1, 1)
    batch = found["all-reduce", ("f32[5]",)]
    assert (batch.loops, batch.open_loops, batch.times) == (1, 0, 3)
    once = found["all-reduce", ("f32[2]",)]
    assert (once.loops, once.open_loops, once.times) == (0, 0, 1)
    assert collectives.bytes_per_round(found.values()) == (3 * 20 + 8, 32 * 128 + 1)
