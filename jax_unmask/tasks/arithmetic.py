"""Worked arithmetic in GSM8K's manner: a story, steps, `#### answer`, end of text.

Like GSM8K's annotators, the authors of the worked solutions differ in how much they write: each
solution has its own verbosity, from merging several additions into one line to one line per
operation with connecting words and the thing counted. So the length of a right response varies
widely for one and the same question, as it does in GSM8K, and the rest of the canvas is EOS.
"""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from jax_unmask.settings import check_ranges, setting
from jax_unmask.tasks.base import Example
from jax_unmask.tasks.generated import GeneratedTask, check_bounds
from jax_unmask.tasks.judges.steps import TextStep, with_steps

NAMES = ("Ada", "Ben", "Eva", "Ian", "Leo", "Mia", "Noa", "Tom")
ITEMS = ("apples", "books", "cards", "coins", "eggs", "pens", "shells", "stamps")
DAYS = ("Mon", "Tue", "Wed")
GAINS = ("buys", "finds")
LOSSES = ("loses", "sells")
FACTORS = {"doubles": 2, "triples": 3}
LINKS = ("so", "then")
LIMIT = 20
# Probability with which the tersest author does the next operation on the same line.
_MERGED_BY_THE_TERSEST = 0.7
_WORDS = NAMES + ITEMS + DAYS + GAINS + LOSSES + tuple(FACTORS) + LINKS
_SYMBOLS = ("has", "+", "-", "*", "=", "####")
_STEP = re.compile(r"(?P<line>[^.#]*)\.|####\s*(?P<answer>-?\d{1,9})")
_LINE = re.compile(
    rf"(?: (?:{'|'.join(LINKS)}))?(?P<days>(?: (?:{'|'.join(DAYS)}))+)(?: (?P<start>\d{{1,9}}))?"
    rf"(?P<work>(?: [+*-] \d{{1,9}})+) = (?P<total>\d{{1,9}})(?: (?:{'|'.join(ITEMS)}))?"
)
_EVENT = re.compile(rf", (?:{'|'.join(DAYS)}) (?P<verb>\w+)(?: (?P<amount>\d+))?")


@dataclasses.dataclass(frozen=True)
class Arithmetic(GeneratedTask):
    """Story problems about a bounded running total (`name = "arithmetic"`).

    Example: ` Mia has 9 pens, Mon buys 4, Tue loses 5?` is answered by ` Mon 9 + 4 = 13. then Tue
    - 5 = 8 pens. #### 8`, or, by a terse author, ` Mon Tue 9 + 4 - 5 = 8. #### 8`. Lines carry the
    total on, as in a ledger, so no number can be copied from further right. Totals stay within 0
    and 20. A response is right when the number after its last `####` is the total.
    """

    name = "arithmetic"
    # Words and numbers carry the space before them; a number is one token.
    vocabulary = (
        *(f" {token}" for token in (*range(LIMIT + 1), *_WORDS, *_SYMBOLS)),
        *(".", ",", "?"),
    )

    min_operations: int = setting(2, "Fewest operations of a problem.", ge=1, le=len(DAYS))
    max_operations: int = setting(3, "Most operations of a problem.", ge=1, le=len(DAYS))
    min_verbosity: float = setting(0.0, "Of the tersest author of solutions.", ge=0, le=1)
    max_verbosity: float = setting(1.0, "Of the author who writes most.", ge=0, le=1)

    def __post_init__(self) -> None:
        check_ranges(self)
        check_bounds(self, "operations")
        check_bounds(self, "verbosity")

    def check_steps(self, example: Example, response: str) -> list[TextStep]:
        """Every line, and the answer, given the story and the total that the line before claims.

        A line is right if it does the story's next operations, in order, and totals them; the
        answer, if no operation is left and it repeats the total.
        """
        total, operations = _read_story(example["prompt"])
        done, steps = 0, []
        for found in _STEP.finditer(response):
            if found["answer"] is not None:
                right = done == len(operations) and int(found["answer"]) == total
                steps.append(TextStep(found.end(), right))
                continue
            line = _LINE.fullmatch(found["line"])
            if line is None:
                steps.append(TextStep(found.end(), False))
                continue
            days = tuple(line["days"].split())
            next_ones = operations[done : done + len(days)]
            written = [(sign, int(n)) for sign, n in re.findall(r"([+*-]) (\d+)", line["work"])]
            # The first line starts from what there is, and no other one repeats a number.
            start = None if line["start"] is None else int(line["start"])
            right = (
                days == DAYS[done : done + len(days)]
                and written == next_ones
                and start == (total if done == 0 else None)
            )
            for sign, amount in written:
                total = _apply(total, sign, amount)
            claimed = int(line["total"])
            steps.append(TextStep(found.end(), right and claimed == total))
            total, done = claimed, done + len(days)
        return steps

    def render(self, example: Example, response: str | None = None) -> str:
        """The story, and each step of the response with whether it is right."""
        return with_steps(example["prompt"].strip(), self, example, response)

    def draw(self, generator: np.random.Generator) -> Example:
        """A random story with a solution by a random author."""

        def pick(options: Sequence[str]) -> str:
            return options[int(generator.integers(len(options)))]

        name, item = pick(NAMES), pick(ITEMS)
        total = int(generator.integers(2, 10))
        story, start, operations = [f" {name} has {total} {item}"], total, []
        count = generator.integers(self.min_operations, self.max_operations + 1)
        for day in DAYS[:count]:
            sign, amount, verb = self._operation(generator, total)
            total = _apply(total, sign, amount)
            operations.append((sign, amount))
            story.append(f", {day} {verb}" if sign == "*" else f", {day} {verb} {amount}")
        return {
            "prompt": "".join(story) + "?",
            "solution": self._write(generator, start, operations, item),
            "answer": total,
        }

    def _operation(self, generator: np.random.Generator, total: int) -> tuple[str, int, str]:
        """Draws an operation that keeps the total within bounds: (sign, amount, verb)."""
        while True:
            kind = generator.random()
            if kind < 0.15:
                verb = list(FACTORS)[generator.integers(len(FACTORS))]
                sign, amount = "*", FACTORS[verb]
            else:
                sign, verbs = ("+", GAINS) if kind < 0.6 else ("-", LOSSES)
                verb = verbs[generator.integers(len(verbs))]
                amount = int(generator.integers(1, 6))
            if 0 <= _apply(total, sign, amount) <= LIMIT:
                return sign, amount, verb

    def _write(
        self,
        generator: np.random.Generator,
        total: int,
        operations: list[tuple[str, int]],
        item: str,
    ) -> str:
        """Writes a solution by an author whose verbosity is uniform between the two bounds."""
        spread = self.max_verbosity - self.min_verbosity
        verbosity = self.min_verbosity + spread * generator.random()
        text, k = "", 0
        while k < len(operations):
            first = k
            k += 1
            # Products get a line of their own: left-to-right reading stays unambiguous.
            while (
                k < len(operations)
                and "*" not in (operations[k - 1][0], operations[k][0])
                and generator.random() < _MERGED_BY_THE_TERSEST * (1.0 - verbosity)
            ):
                k += 1
            if generator.random() < verbosity:
                text += f" {LINKS[generator.integers(len(LINKS))]}"
            text += "".join(f" {day}" for day in DAYS[first:k])
            if first == 0:
                text += f" {total}"
            for sign, amount in operations[first:k]:
                text += f" {sign} {amount}"
                total = _apply(total, sign, amount)
            text += f" = {total}"
            if generator.random() < verbosity:
                text += f" {item}"
            text += "."
        return text + f" #### {total}"


def _apply(total: int, sign: str, amount: int) -> int:
    return {"+": total + amount, "-": total - amount, "*": total * amount}[sign]


def _read_story(prompt: str) -> tuple[int, list[tuple[str, int]]]:
    """The first number of a story, and its operations as (sign, amount)."""
    start = re.search(r" has (\d+) ", prompt)
    assert start is not None  # Every story says so.
    operations = []
    for event in _EVENT.finditer(prompt):
        verb = event["verb"]
        if verb in FACTORS:
            operations.append(("*", FACTORS[verb]))
        else:
            operations.append(("+" if verb in GAINS else "-", int(event["amount"])))
    return int(start[1]), operations
