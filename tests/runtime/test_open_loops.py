"""How often collectives run, in programs with loops of known and of unknown length."""

from __future__ import annotations

from jax_unmask.runtime.collectives import bytes_per_round, collectives

TEXT = """\
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
    found = {(each.kind, each.arrays): each for each in collectives(TEXT)}
    layer = found["all-gather", ("bf16[16,4]",)]
    # The three batches are outside of the loop over steps: one round of that is what counts.
    assert (layer.loops, layer.open_loops, layer.times) == (3, 1, 32)
    step = found["all-reduce", ("pred[]",)]
    assert (step.loops, step.open_loops, step.times) == (2, 1, 1)
    batch = found["all-reduce", ("f32[5]",)]
    assert (batch.loops, batch.open_loops, batch.times) == (1, 0, 3)
    once = found["all-reduce", ("f32[2]",)]
    assert (once.loops, once.open_loops, once.times) == (0, 0, 1)
    assert bytes_per_round(found.values()) == (3 * 20 + 8, 32 * 128 + 1)


def test_a_program_on_one_device_has_none():
    text = "ENTRY %main (x: f32[]) -> f32[] {\n  ROOT %x = f32[] parameter(0)\n}\n"
    assert bytes_per_round(collectives(text)) == (0, 0)
