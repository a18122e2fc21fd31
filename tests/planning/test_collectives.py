from __future__ import annotations

from jax_unmask.planning.collectives import Collective, collectives, total, widened

TEXT = """\
HloModule jit_f, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %s = f32[] add(%a, %b)
}

%layer (p: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %p = (s32[], bf16[8,4]) parameter(0)
  %x = bf16[8,4]{1,0} get-tuple-element(%p), index=1
  %g = bf16[16,4]{1,0} all-gather(bf16[8,4]{1,0} %x), channel_id=1, dimensions={0}
  %r = bf16[8,4]{1,0} reduce-scatter(bf16[16,4]{1,0} %g), channel_id=2, to_apply=%add
  ROOT %t = (s32[], bf16[8,4]) tuple(%c, %r)
}

%more (p: (s32[], bf16[8,4])) -> pred[] {
  ROOT %c = pred[] compare(%i, %n), direction=LT
}

%step (p: (pred[], bf16[8,4])) -> (pred[], bf16[8,4]) {
  %w = (s32[], bf16[8,4]) while(%init), condition=%more, body=%layer, backend_config={"known_trip_count":{"n":"32"}}
  ROOT %any = pred[] all-reduce(%done), channel_id=3, to_apply=%add
}

%branch (x: f32[]) -> f32[3] {
  ROOT %y = f32[3]{0} all-gather(f32[1]{0} %x), dimensions={0}
}

%other (x: f32[]) -> f32[3] {
  ROOT %y = f32[3]{0} broadcast(%x), dimensions={}
}

ENTRY %main (x: bf16[8,4]) -> bf16[8,4] {
  %steps = (pred[], bf16[8,4]) while(%start), condition=%more, body=%step
  %c = f32[3]{0} conditional(%flag, %x, %x), branch_computations={%branch, %other}
  ROOT %end = (f32[5]{0}, s8[7]{0}) all-to-all(f32[5]{0} %c, s8[7]{0} %d), dimensions={0}
}
"""


def test_reads_kinds_bytes_and_how_often_they_run():
    found = collectives(TEXT)
    assert sorted(found, key=lambda each: (each.depth, each.kind)) == [
        Collective("all-gather", 12, times=1, depth=0, dtype="f32"),
        Collective("all-to-all", 27, times=1, depth=0, dtype="f32"),
        Collective("all-gather", 128, times=32, depth=1, dtype="bf16"),
        Collective("all-reduce", 1, times=1, depth=1, dtype="pred"),
        Collective("reduce-scatter", 128, times=32, depth=1, dtype="bf16"),
    ]
    assert total(found, looping=False) == 39
    assert total(found, looping=True) == 2 * 32 * 128 + 1
    assert widened(found, looping=False) == 12
    assert widened(found, looping=True) == 0


def test_a_program_on_one_device_has_none():
    assert (
        collectives("ENTRY %main (x: f32[]) -> f32[] {\n  ROOT %x = f32[] parameter(0)\n}\n") == []
    )
