"""Time of a compiled program, estimated from its text, by kind of operation.

For TPUs the compiler states the cycles of every operation but our kernels. For GPUs an operation
takes as long as its arithmetic at the peak or its bytes at the bandwidth of the memory, whichever
is longer.
"""

import collections
import functools
import math
import re
from collections.abc import Iterable

from jax_unmask.planning.compiled import Array, Compiled, Instruction, Part
from jax_unmask.runtime.accelerators import Accelerator

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_NO_ESTIMATE = 2**62  # The largest number of 64 bits stands for none, also in sums.
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


def kind(program: Compiled, each: Instruction) -> str:
    """The purpose of an operation, by the names of the source."""
    if not each.source:  # A fusion may have none, such as a product that reads a slice in place.
        products = (one for one in program.fused(each) if one.operation in ("custom-call", "dot"))
        each = next(products, each)
    source = each.source
    if each.operation in ("copy", "transpose", "copy-start") or each.name.startswith(
        ("copy", "transpose")
    ):
        return "copies"
    if any(f"/{name}/" in source for name in PRODUCTS) and "dot_general" in source:
        return "products of layers"
    if any(mark in source for mark in ("bghq", "Block/sub", "Block/exp", "Block/jit(_where)")):
        return "attention"
    if "UnmaskingNetwork" in source:
        return "policy"
    if re.search(r"\bhead\b", source):
        return "head"
    if "__cudnn" in each.line or "tpu_custom_call" in each.line:
        return "attention"
    if "norm" in source.lower():
        return "norms"
    if re.search(r"dynamic_(index|slice|update)|scatter", source):
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
            found[kind(program, each)] += took * times
    return dict(sorted(found.items(), key=lambda each: -each[1]))


def _on_tpu(each: Instruction, device: Accelerator) -> float:
    """The compiler's cycles; of a kernel of our own, what it states of its work."""
    cycles = _CYCLES.search(each.line)
    if cycles and int(cycles[1]) < _NO_ESTIMATE:
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
    sizes = {name: _bytes(types.get(name, ())) for name in (each.name, *each.operands)}
    if fused:
        moved = _of_fusion(fused, [sizes[name] for name in each.operands])
    else:
        read = [_read(each, index, sizes) for index in range(len(each.operands))]
        moved = sum(read) + _written(each, sizes)
    return max(_arithmetic(program, each, types) / device.flops, moved / device.bandwidth)


def _of_fusion(fused: list[Instruction], given: list[float]) -> float:
    """Bytes that a fusion reads of operands of these sizes, and writes."""
    sizes = {each.name: _bytes(each.result) for each in fused}
    moved, in_place = 0.0, set()
    for each in fused:
        number = re.search(r" parameter\((\d+)\)", each.line)
        if number is None or int(number[1]) >= len(given):
            continue
        uses = _uses(fused, each.name)
        moved += min(sum(_read(*use, sizes) for use in uses), given[int(number[1])])
        in_place |= {use.name for use, index in uses if index < _in_place(use)}
    by_name = {each.name: each for each in fused}
    results = [each for each in fused if each.is_root]
    while results:
        result = results.pop()
        if result.operation in ("bitcast", "tuple"):
            results += [by_name[name] for name in result.operands if name in by_name]
        else:
            is_whole = result.name not in in_place
            moved += sizes[result.name] if is_whole else _written(result, sizes)
    return moved


def _bytes(found: Iterable[Array]) -> float:
    return float(sum(array.bytes for array in found))


def _read(each: Instruction, index: int, sizes: dict[str, float]) -> float:
    """Bytes that an operation reads of one operand."""
    if index == 0 and each.operation in ("slice", "dynamic-slice", "gather"):
        return sizes[each.name]
    if index < _in_place(each):
        return 0.0
    return sizes.get(each.operands[index], 0.0)


def _written(each: Instruction, sizes: dict[str, float]) -> float:
    """Bytes that an operation writes."""
    if count := _in_place(each):
        # A scatter also has indices between the arrays and what is put into them.
        first = 1 if each.operation == "dynamic-update-slice" else count + 1
        return sum(sizes.get(name, 0.0) for name in each.operands[first : first + count])
    return sizes[each.name]


def _in_place(each: Instruction) -> int:
    """Leading operands of which an operation changes parts, and leaves the rest where it is."""
    if each.operation == "scatter":
        return len(each.operands) // 2
    return int(each.operation == "dynamic-update-slice")


def _uses(fused: list[Instruction], name: str) -> list[tuple[Instruction, int]]:
    """The instructions that read a value, seen through bitcasts, and as which operand."""
    found = []
    for each in fused:
        for index, operand in enumerate(each.operands):
            if operand == name:
                is_seen = each.operation == "bitcast"
                found += _uses(fused, each.name) if is_seen else [(each, index)]
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
