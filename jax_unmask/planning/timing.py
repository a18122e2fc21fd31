"""Time of a compiled program, estimated from its text, by kind of operation.

For TPUs the compiler states the cycles of every operation but our kernels. For GPUs an operation
takes as long as its arithmetic at the peak or its bytes at the bandwidth of the memory, whichever
is longer.
"""

from __future__ import annotations

import collections
import functools
import math
import re

from jax_unmask.planning.compiled import Array, Compiled, Instruction, Part
from jax_unmask.runtime.accelerators import Accelerator

# The largest number of 64 bits stands for no estimate.
_CYCLES = re.compile(r'"estimated_cycles":"(?!9223372036854775807)(\d+)"')
_KERNEL = re.compile(
    r'"cost_estimate":\{"flops":"(\d+)","transcendentals":"(\d+)","bytes_accessed":"(\d+)"'
)
# Vector operations for each exponential of a kernel, and how many a TPU's core does in a cycle.
_FOR_EACH, _VECTOR = 10, 4 * 8 * 128
_CONTRACTED = re.compile(r"lhs_contracting_dims=\{([0-9,]*)\}")
_SCORES = re.compile(
    r'"intermediate_tensor_shape":\{"element_type":"\w+","dimensions":\[([^\]]*)\]'
)
_FREE = (
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"),
    *("call", "copy-done", "slice-done", "after-all", "partition-id", "optimization-barrier"),
)

PRODUCTS = ("query", "key", "value", "attention_out", "gate", "up", "down")


def kind(each: Instruction) -> str:
    """The purpose of an operation, by the names of the source."""
    source = each.source
    if each.operation in ("copy", "transpose", "copy-start") or each.name.startswith(
        ("copy", "transpose")
    ):
        return "copies"
    if any(f"/{name}/" in source for name in PRODUCTS) and "dot_general" in source:
        return "products of layers"
    if any(mark in source for mark in ("bghq", "Block/sub", "Block/exp", "Block/jit(_where)")):
        return "attention"
    if source.endswith("head/pallas_call"):
        return "head"
    if "__cudnn" in each.line or "tpu_custom_call" in each.line:
        return "attention"
    if "norm" in source.lower():
        return "norms"
    if "UnmaskingNetwork" in source:
        return "policy"
    if "dynamic_index" in source:
        return "slices of stacks"
    # The head walks over slices of the vocabulary.
    inside = source.rpartition("branch_")[2]
    if "shard_map/while" in source or ("while/body" in inside and "Block" not in inside):
        return "head"
    if "dynamic_slice" in source:
        return "slices of stacks"
    return "rest"


def seconds(program: Compiled, part: Part, device: Accelerator) -> dict[str, float]:
    """Seconds of one round of a part by kind, the longest first; collectives are not in them."""
    found: dict[str, float] = collections.defaultdict(float)
    types = {each.name: each.result for each, _, _ in part.instructions}
    for each, _, times in part.instructions:
        if device.clock_ghz:
            took = _on_tpu(each, device)
        else:
            took = _roofline(program, each, types, device)
        if took:
            found[kind(each)] += took * times
    return dict(sorted(found.items(), key=lambda each: -each[1]))


def _on_tpu(each: Instruction, device: Accelerator) -> float:
    """The compiler's cycles; of a kernel of our own, what it states of its work."""
    if cycles := _CYCLES.search(each.line):
        return int(cycles[1]) / device.clock_ghz / 1e9
    if kernel := _KERNEL.search(each.line):
        flops, exponentials, moved = map(int, kernel.groups())
        vectors = _FOR_EACH * exponentials / _VECTOR / device.clock_ghz / 1e9
        return max(flops / device.flops + vectors, moved / device.bandwidth)
    return 0.0


def _roofline(
    program: Compiled, each: Instruction, types: dict[str, tuple[Array, ...]], device: Accelerator
) -> float:
    if each.operation in _FREE or each.operation.endswith(("-start", "-done")):
        return 0.0
    if each.operation.startswith(("all-", "reduce-scatter", "collective-")):
        return 0.0
    fused = program.fused(each)
    moved = float(sum(array.bytes for array in each.result))
    given = [float(sum(array.bytes for array in types.get(name, ()))) for name in each.operands]
    if fused:
        given, moved = _of_fusion(fused, given, moved)
    elif each.operation == "dynamic-slice":
        given = [moved]
    elif each.operation == "dynamic-update-slice":
        given, moved = given[1:2], given[1]
    return max(
        _arithmetic(program, each, types) / device.flops, (moved + sum(given)) / device.bandwidth
    )


def _of_fusion(
    fused: list[Instruction], given: list[float], moved: float
) -> tuple[list[float], float]:
    """Bytes that a fusion reads of each operand, and writes: slices are read without the rest."""
    read = list(given)
    sizes = {each.name: sum(array.bytes for array in each.result) for each in fused}
    for each in fused:
        number = re.search(r" parameter\((\d+)\)", each.line)
        if number is None or int(number[1]) >= len(read):
            continue
        uses = _uses(fused, each.name)
        if uses and all(use.operation in ("slice", "dynamic-slice") for use in uses):
            read[int(number[1])] = sum(sizes[use.name] for use in uses)
        elif uses and all(
            use.operation == "dynamic-update-slice" and use.operands[0] == each.name for use in uses
        ):
            read[int(number[1])] = 0
    root = next((each for each in fused if each.is_root), None)
    while root is not None and root.operation == "bitcast":
        root = next((each for each in fused if each.name == root.operands[0]), None)
    if root is not None and root.operation == "dynamic-update-slice":
        moved = sizes.get(root.operands[1], moved)
    return read, moved


def _uses(fused: list[Instruction], name: str) -> list[Instruction]:
    """The instructions that read a value, seen through bitcasts."""
    found = []
    for each in fused:
        if name in each.operands:
            found += _uses(fused, each.name) if each.operation == "bitcast" else [each]
    return found


def _arithmetic(program: Compiled, each: Instruction, types: dict[str, tuple[Array, ...]]) -> float:
    """Operations of the matrix products in an instruction."""
    fused = program.fused(each)
    if fused:
        inner = {other.name: other.result for other in fused}
        return sum(_arithmetic(program, other, inner) for other in fused)
    size = functools.partial(_size, types)
    if each.operation == "dot" and (contracted := _CONTRACTED.search(each.line)):
        left = types.get(each.operands[0], ())
        if not left:
            return 0.0
        shared = math.prod(left[0].shape[int(i)] for i in contracted[1].split(",") if i)
        return 2.0 * shared * math.prod(each.result[0].shape)
    if "__cublas" in each.line and len(each.operands) >= 2:
        return 2.0 * math.sqrt(
            size(each.operands[0]) * size(each.operands[1]) * math.prod(each.result[0].shape)
        )
    if scores := _SCORES.search(each.line):
        shape = [int(number.strip('" ')) for number in scores[1].split(",")]
        per_head = shape[0] * shape[1] * shape[2]
        return 4.0 * math.prod(shape) * size(each.operands[0]) / max(per_head, 1)
    return 0.0


def _size(types: dict[str, tuple[Array, ...]], name: str) -> int:
    found = types.get(name)
    return math.prod(found[0].shape) if found else 0
