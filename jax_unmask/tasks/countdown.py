"""Countdown: make a target from given numbers, each used once, with + - * and /."""

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

import numpy as np

from jax_unmask.settings import check_ranges, setting
from jax_unmask.tasks import files, prompts
from jax_unmask.tasks.base import Example, Prompt, Source, Split
from jax_unmask.tasks.checkers import answers, expressions, published
from jax_unmask.tasks.generated import GeneratedTask

Style = Literal["expression", "equations", "chat"]

# Largest given number of a generated problem, and the largest result of a step towards its target.
_LARGEST, _LARGEST_DRAWN = 99, 199
_LAST = 500
_REQUEST = """{format}
Using only the numbers {numbers}, create an arithmetic expression that evaluates to exactly \
{target}. You must use all numbers from the list, and each number must be used exactly once. You \
may use the operations +, -, *, and / as needed. After reasoning, provide only your final \
expression inside <answer></answer> tags without including an equals sign or the target number. \
For example, if the numbers are [2, 3, 4] and the target is 5, a valid answer is: <answer>
2*4-3
</answer>"""
_STEP = re.compile(r"(\d+)([+\-*/])(\d+)=(\d+)", re.ASCII)
_ONLY_ARITHMETIC = re.compile(r"^[\d+\-*/().\s]+$")


@dataclasses.dataclass(frozen=True)
class Countdown(GeneratedTask):
    """Countdown with 3, 4 or 5 numbers (`name = "countdown"`).

    Problems are generated; with a path, the test split is a public file: lines of `input` and
    `output`, where the input is "30,100,93" with the target as output (d1), or "15,44,79,50" with
    the target last and a solution "44-15=29,79-29=50" as output (Dream).

    Prompts are `79,44,15:50=`, the largest number first, in a closed vocabulary for small
    denoisers; responses are an expression, `79-44+15`, or equations, `44-15=29,79-29=50`. In style
    "chat" prompts are d1's and responses an expression within tags. The published reward
    (`reference_compat`) is 1 for a right expression, 0.1 for any other answer within tags, 0
    without one.

    Attributes:
        path: test file, a directory with `cd3_test.jsonl`, `cd4_test.jsonl`, ..., or
            `hub:Jiayi-Pan/Countdown-Tasks-3to4`.
    """

    name = "countdown"
    vocabulary = (*map(str, range(_LARGEST_DRAWN + 1)), ",", "=", ":", *"+-*/()")

    path: files.Path | None = None
    _: dataclasses.KW_ONLY
    numbers: int = setting(3, "Numbers of a problem.", choices=(3, 4, 5))
    style: Style = setting("expression", "Form of prompts and responses.")
    reference_compat: bool = setting(False, "d1's published reward; needs style=chat.")

    def __post_init__(self) -> None:
        check_ranges(self)
        published.check_style(self)

    def source(self, split: Split, *, seed: int = 0) -> Source:
        """An endless stream of problems, of which no prompt occurs in two splits, or the file."""
        if self.path is None or split != "test":
            return super().source(split, seed=seed)
        own = (f".*cd{self.numbers}_test", "test", "train")
        found = files.split_files(self.path, own, name=self.name)
        rows = files.read_table(found, (), self._parse)
        # TinyZero's training set, problems of 3 and 4 numbers: d1 tests on its last 500 of a kind.
        kept = [row for row in rows if len(row["numbers"]) == self.numbers]
        return kept if len(kept) == len(rows) else kept[-_LAST:]

    def prompt(self, example: Example) -> Prompt:
        """The problem, as text or as d1's message."""
        if self.style != "chat":
            return example["prompt"]
        request = _REQUEST.format(format=prompts.TRAINING_FORMAT, **example)
        return prompts.turns(request)

    def target(self, example: Example) -> str:
        """A right response."""
        steps = example["steps"] or ",".join(_solve(example["numbers"], example["target"]) or ())
        if self.style == "equations":
            return steps
        expression = _as_expression(steps)
        if self.style == "expression":
            return expression
        return prompts.worked_response(steps.replace(",", "\n"), expression, "training")

    def check(self, example: Example, response: str) -> float:
        """1 if the response makes the target from the numbers, each used once, else 0."""
        numbers, target = example["numbers"], example["target"]
        if self.style == "equations":
            return float(_steps_are_right(response.strip(), numbers, target))
        if self.style == "expression":
            return float(_makes(response, numbers, target))
        if self.reference_compat:
            return _published_reward(response, numbers, target)
        return float(_expression_is_right(response, numbers, target))

    def render(self, example: Example, response: str | None = None) -> str:
        """The problem in words, and what the response makes of the numbers."""
        numbers, target = example["numbers"], example["target"]
        problem = f"make {target} from {', '.join(map(str, numbers))}"
        if response is None:
            return problem
        if self.style == "equations":
            return "\n".join([problem, *response.strip().split(",")])
        text = response if self.style == "expression" else answers.final_expression(response)
        expression = expressions.plain(text or "").partition("=")[0].strip()
        value = expressions.evaluate(expression)
        line = f"{text or response}: no expression" if value is None else f"{expression} = {value}"
        used = expressions.integers(expression)
        is_other = value is not None and used != sorted(numbers)
        return f"{problem}\n{line}{f', of {used}' if is_other else ''}"

    def draw(self, generator: np.random.Generator) -> Example:
        """A random problem, with the steps that made its target."""
        while True:
            # Few attempts give a problem; numbers are drawn for many at a time, which is cheaper.
            for draws in generator.integers(2**32, size=(32, 4 * self.numbers)).tolist():
                example = self._attempt(draws)
                if example is not None:
                    return example

    def _attempt(self, draws: list[int]) -> Example | None:
        """Joins random numbers by random steps; None if that gives no problem."""
        numbers = [1 + draws.pop() % _LARGEST for _ in range(self.numbers)]
        values, steps = list(numbers), []
        while len(values) > 1:
            a = values.pop(draws.pop() % len(values))
            b = values.pop(draws.pop() % len(values))
            sign = "+-*/"[draws.pop() % 4]
            result = _apply(a, sign, b)
            if result is None or result > _LARGEST_DRAWN:
                return None
            steps.append(f"{a}{sign}{b}={result}")
            values.append(result)
        if not 1 <= values[0] <= _LARGEST + 1:
            return None
        return _example(numbers, values[0], ",".join(steps))

    def _parse(self, example: Example) -> Example:
        if isinstance(example, dict) and {"nums", "target"} <= set(example):
            return _example([int(k) for k in example["nums"]], int(example["target"]), "")
        files.check_fields(example, ("input", "output"))
        output, steps = example["output"], ""
        try:
            numbers = [int(number) for number in example["input"].split(",")]
            if "=" in output:
                *numbers, output = numbers
                steps = example["output"]
                _as_expression(steps)
            target = int(output)
        except ValueError as error:
            raise ValueError(
                "fields 'input' and 'output' must be like '30,100,93' and '23', or '15,44,79,50' "
                f"and '44-15=29,79-29=50'; found {example['input']!r} and {example['output']!r}"
            ) from error
        if len(numbers) != self.numbers:
            raise ValueError(
                f"field 'input' must hold {self.numbers} numbers, found {example['input']!r}"
            )
        return _example(numbers, target, steps)


def _example(numbers: list[int], target: int, steps: str) -> Example:
    ordered = sorted(numbers, reverse=True)  # A problem has one prompt, hence lies in one split.
    prompt = f"{','.join(map(str, ordered))}:{target}="
    return {"prompt": prompt, "numbers": numbers, "target": target, "steps": steps}


def _apply(a: int, sign: str, b: int) -> int | None:
    """Result of a step, or None where it is no whole number from 0 to 99,999."""
    if sign == "/":
        return a // b if b and a % b == 0 else None
    result = a + b if sign == "+" else a - b if sign == "-" else a * b
    return result if 0 <= result < 100_000 else None


def _solve(numbers: Sequence[int], target: int) -> list[str] | None:
    """Steps that make the target in whole numbers, or None."""
    if len(numbers) == 1:
        return [] if numbers[0] == target else None
    for i, a in enumerate(numbers):
        for j, b in enumerate(numbers):
            if i != j:
                rest = [value for k, value in enumerate(numbers) if k not in (i, j)]
                for sign in "+-*/":
                    result = _apply(a, sign, b)
                    if result is not None:
                        steps = _solve([*rest, result], target)
                        if steps is not None:
                            return [f"{a}{sign}{b}={result}", *steps]
    return None


@dataclasses.dataclass(frozen=True)
class _Sum:
    """A sum of terms without parentheses around it: each has a sign and is a product."""

    terms: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        # A positive number has a positive term; written first, it needs no sign.
        first = next(k for k, (sign, _) in enumerate(self.terms) if sign == "+")
        rest = (*self.terms[:first], *self.terms[first + 1 :])
        return self.terms[first][1] + "".join(sign + text for sign, text in rest)

    def joined(self, sign: str, other: "_Sum") -> "_Sum":
        """The two sums joined by an operation; no more parentheses than it needs."""
        if sign == "+":
            return _Sum(self.terms + other.terms)
        if sign == "-":
            turned = tuple(("-" if each == "+" else "+", text) for each, text in other.terms)
            return _Sum(self.terms + turned)
        left, right = self._factor(), other._factor()
        if sign == "/" and len(other.terms) == 1 and not right.isdecimal():
            right = f"({right})"
        return _Sum((("+", left + sign + right),))

    def _factor(self) -> str:
        return f"({self})" if len(self.terms) > 1 else self.terms[0][1]


def _as_expression(steps: str) -> str:
    """One expression for a chain of steps; each result stands for the step that made it."""
    made: list[tuple[str, _Sum]] = []
    for step in steps.split(","):
        match = _STEP.fullmatch(step)
        if match is None:
            raise ValueError(f"not a step: {step!r}")
        a, sign, b, result = match.groups()
        made.append((result, _take(made, a).joined(sign, _take(made, b))))
    return str(made[-1][1])


def _take(made: list[tuple[str, _Sum]], number: str) -> _Sum:
    for k, (result, expression) in enumerate(made):
        if result == number:
            del made[k]
            return expression
    return _Sum((("+", number),))


def _steps_are_right(response: str, numbers: Sequence[int], target: int) -> bool:
    available = Counter(numbers)
    result = None
    for step in response.split(","):
        match = _STEP.fullmatch(step)
        if match is None or len(step) > 64:
            return False
        a, b, result = int(match[1]), int(match[3]), int(match[4])
        available.subtract((a, b))
        if min(available.values()) < 0 or expressions.evaluate(step.partition("=")[0]) != result:
            return False
        available[result] += 1
    return result == target and +available == Counter([target])


def _expression_is_right(response: str, numbers: Sequence[int], target: int) -> bool:
    answer = answers.final_expression(response)
    if answer is None:
        return False
    expression, equals, claimed = expressions.plain(answer).partition("=")
    if equals and expressions.evaluate(claimed) != target:
        return False
    return _makes(expression, numbers, target)


def _makes(expression: str, numbers: Sequence[int], target: int) -> bool:
    if expressions.integers(expression) != sorted(numbers):
        return False
    return expressions.evaluate(expression) == Fraction(target)


def _published_reward(response: str, numbers: Sequence[int], target: int) -> float:
    equation = published.last_tagged(response)
    if equation is None:
        return 0.0
    if sorted(int(n) for n in re.findall(r"\d+", equation)) != sorted(numbers):
        return 0.1
    value = None
    if _ONLY_ARITHMETIC.match(equation):
        value = expressions.evaluate_as_python(equation)
    return 1.0 if value is not None and abs(value - target) < 1e-5 else 0.1
