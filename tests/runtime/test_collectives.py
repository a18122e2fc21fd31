"""The reader of compiled programs, on pieces of real ones."""

from __future__ import annotations

import pytest

from jax_unmask.runtime import collectives

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
    assert collectives.bytes_per_call(found) == {0: 16, 1: 1025, 2: 8193}


def test_equal_ones_share_a_line():
    found = collectives.collectives(TEXT)
    lines = collectives.table([*found, found[0]]).splitlines()
    assert lines[0] == "   2 x           16 B  all-reduce bf16[2,3] f32[] among 8"
    assert len(lines) == len(found)


def test_other_texts_are_refused():
    with pytest.raises(ValueError, match="no entry computation"):
        collectives.collectives("module @jit_step {}")
