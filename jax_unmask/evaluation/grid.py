"""The short notation for many settings of a policy.

threshold:threshold=0.5|0.7|0.9       three settings
threshold:threshold=0.5..0.9/0.1      five settings: both ends, in steps of 0.1
threshold:threshold=0.9@16            only where the block length is 16 (or @4|16; @0: the canvas)
"""

from __future__ import annotations

import dataclasses
import decimal
import itertools
import re

_BLOCKS = re.compile(r"(?P<rest>.*)@(?P<blocks>\d+(\|\d+)*)")
_RANGE = re.compile(r"(?P<low>[\d.]+?)\.\.(?P<high>[\d.]+)/(?P<step>[\d.]+)")
_MAX_RANGE = 1000


@dataclasses.dataclass(frozen=True)
class PolicySpec:
    """One policy at one setting.

    Attributes:
        name: what stands before the first colon, e.g. "threshold" or "learned".
        target: what `name` refers to: the directory of "learned:DIR", else "".
        settings: pairs of a setting's name and its value, as they were written.
        block_lengths: the only block lengths to measure it at; empty for all.
    """

    name: str
    target: str = ""
    settings: tuple[tuple[str, str], ...] = ()
    block_lengths: tuple[int, ...] = ()

    @property
    def text(self) -> str:
        """The policy in the notation of `policies.parse_policy`."""
        parts = [self.target] if self.target else []
        parts += [f"{name}={value}" for name, value in self.settings]
        return f"{self.name}:{','.join(parts)}" if parts else self.name


def expand(text: str) -> list[PolicySpec]:
    """Every setting that a line of the notation stands for, the last setting varying fastest.

    Raises:
        ValueError: the text cannot be read; the message shows the right form.
    """
    blocks: tuple[int, ...] = ()
    rest = text.strip()
    if match := _BLOCKS.fullmatch(rest):
        rest = match["rest"]
        blocks = tuple(int(block) for block in match["blocks"].split("|"))
    name, _, arguments = rest.partition(":")
    if not name:
        raise ValueError(
            f"policy {text!r} has no name; write for example 'threshold:threshold=0.9'"
        )
    target, names, choices = "", [], []
    for index, argument in enumerate(filter(None, arguments.split(","))):
        setting, equals, values = argument.partition("=")
        if not equals and index == 0 and name == "learned":
            target = argument
            continue
        if not equals or not setting or not values:
            raise ValueError(
                f"policy {text!r}: {argument!r} is not of the form setting=value; write for "
                "example 'threshold:threshold=0.5|0.7|0.9'"
            )
        names.append(setting.strip())
        choices.append(_values(text, values))
    return [
        PolicySpec(name, target, tuple(zip(names, combination, strict=True)), blocks)
        for combination in itertools.product(*choices)
    ]


def _values(text: str, written: str) -> list[str]:
    values: list[str] = []
    for part in written.split("|"):
        match = _RANGE.fullmatch(part.strip())
        if match:
            values += _range(text, part, match)
        elif part.strip():
            values.append(part.strip())
        else:
            raise ValueError(f"policy {text!r}: there is an empty value in {written!r}")
    return values


def _range(text: str, part: str, match: re.Match[str]) -> list[str]:
    # Decimal, so that 0.1 + 0.1 + 0.1 is written 0.3.
    try:
        low, high, step = (decimal.Decimal(match[name]) for name in ("low", "high", "step"))
    except decimal.InvalidOperation:
        raise ValueError(
            f"policy {text!r}: {part!r} is not a range; write low..high/step, for example "
            "0.5..0.9/0.1"
        ) from None
    if step <= 0 or high < low or (high - low) / step > _MAX_RANGE:
        raise ValueError(
            f"policy {text!r}: the range {part!r} must rise, with a positive step and at most "
            f"{_MAX_RANGE} values"
        )
    count = int((high - low) / step) + 1
    return [str(low + k * step) for k in range(count)]
