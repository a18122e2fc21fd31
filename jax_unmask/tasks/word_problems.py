"""Generated word problems in GSM8K's manner: three to eight steps, worked out by several authors.

Quantities depend on each other, so every step but the last gives a number that a later one needs.
Authors differ in how much they write: from bare equations to sentences that repeat what is known,
check each result and talk. The length of a right response varies widely for one and the same
question, and the rest of the canvas is EOS.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from jax_unmask.settings import check_ranges, setting
from jax_unmask.tasks.base import Example
from jax_unmask.tasks.generated import GeneratedTask, check_bounds
from jax_unmask.tasks.judges.steps import TextStep, with_steps

T = TypeVar("T")

NAMES = ("Ada", "Ben", "Eva", "Ian", "Leo", "Mia", "Noa", "Sam", "Tom", "Uma", "Vic", "Zoe")
ITEMS = ("apples", "books", "cards", "coins", "eggs", "pens", "shells", "stamps")
GAINS = ("buys", "finds", "gets")
LOSSES = ("gives", "loses", "sells")
MULTIPLES = {"twice": 2, "three times": 3, "four times": 4}
AUTHORS = ("terse", "brief", "plain", "careful", "checking", "chatty", "correcting")
LARGEST = 99
_WORDS = (
    "has more fewer than as many half twice three four times together then away how do does have "
    "and so now next first let us look at we know that is right good check in all there are the "
    "difference what was asked"
)
_TOKEN = re.compile(r" ?\w+| ?#+| ?[^\s\w]")
_SENTENCE = re.compile(r"(?P<text>[^.#]*)\.|####\s*(?P<answer>\d{1,9})")
_EQUATION = re.compile(
    r"(?:(?P<owner>[A-Z]\w+)(?: has|:) )?"
    r"(?P<left>\d{1,9}) (?P<sign>[-+*/]) (?P<right>\d{1,9}) = (?P<result>\d{1,9})(?: [a-z]+)?$"
)
_STATEMENT = re.compile(r"(?P<owner>[A-Z]\w+) has (?P<value>\d{1,9})(?: [a-z]+)?$")
_OPPOSITE = {"+": "-", "-": "+", "*": "/", "/": "*"}
_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a // b if b and a % b == 0 else -1,
}


class Quantity(NamedTuple):
    """A number of a story.

    Attributes:
        owner: whose number it is; "" for the sum or the difference that is asked for.
        sign: the operation that gives it: + - * /; "" for a number that the story states.
        left: index of the quantity that the operation starts from; the number itself if stated.
        right: the second operand.
        is_index: `right` is the index of a quantity rather than a number.
        fact: the sentence of the story, without its full stop.
    """

    owner: str
    sign: str
    left: int
    right: int
    is_index: bool
    fact: str


@dataclasses.dataclass(frozen=True)
class WordProblems(GeneratedTask):
    """Word problems about numbers of things that persons have (`name = "word_problems"`).

    Example: ` Mia has 7 pens. Tom has 4 more pens than Mia. Tom then buys 2 pens. how many pens
    does Tom have?` is answered by ` 7 + 4 = 11. 11 + 2 = 13. #### 13`, or by a more talkative
    author by ` so Tom has 7 + 4 = 11 pens. Tom then buys 2 pens. ...`. With `branching` steps also
    need older results, or the sum of two: ` how many more pens does Tom have than Mia?`. All
    numbers are whole and between 0 and `largest`. A response is right when the number after its
    last `####` is. Each author has a weight; one whose solution would be longer than the canvas
    leaves out sentences that are not needed.
    """

    name = "word_problems"
    # Words and numbers carry the space before them; a number is one token.
    vocabulary = (
        *(f" {number}" for number in range(LARGEST + 1)),
        *(f" {word}" for word in dict.fromkeys((*NAMES, *ITEMS, *GAINS, *LOSSES, *_WORDS.split()))),
        *(" +", " -", " *", " /", " =", " ####", ".", ",", "?", ":"),
    )

    min_steps: int = setting(3, "Fewest steps of a problem.", ge=1, le=8)
    max_steps: int = setting(8, "Most steps of a problem.", ge=1, le=8)
    largest: int = setting(50, "Largest number of a story or a solution.", ge=20, le=LARGEST)
    story: int = setting(
        112, "Most tokens of a story with its question; others are drawn again.", ge=112
    )
    branching: float = setting(
        0.0, "How often a step needs more than the last result: 0 never, 1 often.", ge=0, le=1
    )
    canvas: int = setting(128, "Most tokens of a solution; 256 lets all authors finish.", ge=96)
    terse: float = setting(1.0, "Weight of the author of bare equations.", ge=0)
    brief: float = setting(1.0, "Weight of the author who says whose number it is.", ge=0)
    plain: float = setting(1.0, "Weight of the author of one sentence per step.", ge=0)
    careful: float = setting(1.0, "Weight of the author who repeats what is known.", ge=0)
    checking: float = setting(1.0, "Weight of the author who checks each result.", ge=0)
    chatty: float = setting(1.0, "Weight of the author who talks.", ge=0)
    correcting: float = setting(
        0.0, "Weight of the author whose checks find mistakes, which are mended.", ge=0
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        check_bounds(self, "steps")
        if not sum(self._weights):
            raise ValueError(f"the weights of all authors are 0; give one of {AUTHORS} some")

    @property
    def _weights(self) -> list[float]:
        return [getattr(self, author) for author in AUTHORS]

    def check_steps(self, example: Example, response: str) -> list[TextStep]:
        """Every sentence with a number, and the answer, given what the sentences before claim.

        An equation is right if it computes a quantity of the story, from the numbers that the story
        and the response give for its operands, unless that was computed rightly before, or if it
        undoes one that was computed. `Mia has 7 pens` is right if that was stated or computed, a
        sentence of the story always. The answer is right if it repeats the quantity asked for.
        """
        ledger = _Ledger([Quantity(*each) for each in json.loads(example["story"])])
        steps = []
        for found in _SENTENCE.finditer(response):
            if found["answer"] is not None:
                right = ledger.values.get(example["asked"]) == int(found["answer"])
            elif not re.search(r"\d", found["text"]):
                continue
            else:
                right = ledger.read(found["text"].strip())
            steps.append(TextStep(found.end(), right))
        return steps

    def render(self, example: Example, response: str | None = None) -> str:
        """The story, and each step of the response with whether it is right."""
        return with_steps(example["prompt"].strip(), self, example, response)

    def draw(self, generator: np.random.Generator) -> Example:
        """A random story with a solution by a random author."""
        draws = _Draws(generator)
        steps = draws.integer(self.min_steps, self.max_steps)
        while True:
            teller = _Teller(draws, self.largest, self.branching)
            if teller.tell(steps) and length(teller.prompt) <= self.story:
                break
        author = generator.choice(AUTHORS, p=np.array(self._weights) / sum(self._weights))
        writer = _Writer(draws, teller.story, teller.values, teller.item, self.largest)
        return {
            "prompt": teller.prompt,
            "solution": writer.write(author, self.canvas, teller.asked),
            "answer": teller.values[teller.asked],
            "author": str(author),
            # One text: batches go through all leaves of their examples.
            "story": json.dumps(teller.story),
            "asked": teller.asked,
        }


def length(text: str) -> int:
    """Number of tokens of a prompt or a solution.

    >>> length(" so Tom has 7 + 4 = 11 pens. #### 11")
    12
    """
    return len(_TOKEN.findall(text))


class _Draws:
    """Random choices. Uniform numbers are drawn many at a time, which is cheaper."""

    def __init__(self, generator: np.random.Generator) -> None:
        self._generator = generator
        self._ready: list[float] = []

    def chance(self, probability: float) -> bool:
        return self._uniform() < probability

    def integer(self, low: int, high: int) -> int:
        """An integer from low up to high, both included."""
        return low + int(self._uniform() * (high - low + 1))

    def pick(self, options: Sequence[T]) -> T:
        return options[self.integer(0, len(options) - 1)]

    def _uniform(self) -> float:
        if not self._ready:
            self._ready = self._generator.random(64).tolist()
        return self._ready.pop()

    def shuffled(self, options: Sequence[T]) -> list[T]:
        left = list(options)
        return [left.pop(self.integer(0, len(left) - 1)) for _ in options]


class _Teller:
    """Draws the quantities of a story so that each is needed for what is asked.

    At any time at most two quantities are open: nothing depends on them yet. Every step takes an
    open one, and the last step, or the question, takes all that are left. Without branching only
    one is open, the latest, and each step goes on from it.
    """

    def __init__(self, draws: _Draws, largest: int, branching: float) -> None:
        self._draws, self._largest, self._branching = draws, largest, branching
        self._names = draws.shuffled(NAMES)
        self.item = draws.pick(ITEMS)
        self.story: list[Quantity] = []
        self.values: list[int] = []
        self._open: list[int] = []
        self.question, self.asked = "", 0

    @property
    def prompt(self) -> str:
        """The facts and the question."""
        facts = "".join(f" {each.fact}." for each in self.story if each.fact)
        return f"{facts} {self.question}?"

    def tell(self, steps: int) -> bool:
        """Draws a story of some steps; False if it came to a dead end."""
        self._state_number()
        for _ in range(4 * steps):
            are_two = len(self._open) == 2
            if steps == 1 and (are_two or self._branches(0.4)):
                return self._ask_for_both()
            if not are_two and steps > 1 and self._names and self._branches(0.25):
                self._state_number()
            elif are_two and self._draws.chance(0.35):
                steps -= self._add(*self._open)
            elif not are_two and len(self.story) > 2 and self._branches(0.15):
                steps -= self._add(self._open[0], self._draws.pick(range(len(self.story))))
            else:
                steps -= self._change(self._draws.pick(self._open))
            if not steps:
                break
        if steps or len(self._open) == 2:
            return False
        (self.asked,) = self._open
        self.question = f"how many {self.item} does {self.story[self.asked].owner} have"
        return True

    def _branches(self, probability: float) -> bool:
        return self._draws.chance(probability * self._branching)

    def _state_number(self) -> None:
        owner, number = self._names[-1], self._draws.integer(2, 12)
        fact = f"{owner} has {number} {self.item}"
        self._append(Quantity(owner, "", number, 0, False, fact), number, ())

    def _change(self, k: int) -> bool:
        """A quantity from one other and a number that the story states."""
        value, other = self.values[k], self.story[k].owner
        sign = self._draws.pick("+++--**/")
        is_same = not self._names or (sign in "+-" and self._draws.chance(0.4))
        owner = other if is_same else self._names[-1]
        if sign in "+-" or not self._names:
            sign = sign if sign in "+-" else "+"
            number = self._draws.integer(1, 9)
            word = "more" if sign == "+" else "fewer"
            fact = f"{owner} has {number} {word} {self.item} than {other}"
            if is_same:
                verb = self._draws.pick(GAINS if sign == "+" else LOSSES)
                away = " away" if verb == "gives" else ""
                fact = f"{owner} then {verb}{away} {number} {self.item}"
        elif sign == "*":
            word = self._draws.pick(list(MULTIPLES))
            number = MULTIPLES[word]
            fact = f"{owner} has {word} as many {self.item} as {other}"
        else:
            number = 2
            fact = f"{owner} has half as many {self.item} as {other}"
        result = _OPERATIONS[sign](value, number)
        if not 0 < result <= self._largest or not self._is_current(k):
            return False
        self._append(Quantity(owner, sign, k, number, False, fact), result, (k,))
        return True

    def _add(self, first: int, second: int) -> bool:
        """A quantity that is the sum of two others."""
        owners = [self.story[k].owner for k in (first, second)]
        result = self.values[first] + self.values[second]
        if not self._can_join(first, second) or result > self._largest or not self._names:
            return False
        owner = self._names[-1]
        fact = f"{owner} has as many {self.item} as {owners[0]} and {owners[1]} together"
        self._append(Quantity(owner, "+", first, second, True, fact), result, (first, second))
        return True

    def _ask_for_both(self) -> bool:
        """The last step: a sum or a difference, which the question asks for."""
        first = self._open[0]
        second = self._open[1] if len(self._open) == 2 else self._draws.pick(range(len(self.story)))
        if not self._can_join(first, second):
            return False
        if self.values[first] < self.values[second]:
            first, second = second, first
        one, other = self.story[first].owner, self.story[second].owner
        a, b = self.values[first], self.values[second]
        sign = "+" if a == b or (a + b <= self._largest and self._draws.chance(0.6)) else "-"
        result = _OPERATIONS[sign](a, b)
        if result > self._largest:
            return False
        self.question = (
            f"how many {self.item} do {one} and {other} have together"
            if sign == "+"
            else f"how many more {self.item} does {one} have than {other}"
        )
        self.asked = len(self.story)
        self._append(Quantity("", sign, first, second, True, ""), result, ())
        return True

    def _append(self, quantity: Quantity, value: int, used: Sequence[int]) -> None:
        self._open = [k for k in self._open if k not in used] + [len(self.story)]
        self._names = [name for name in self._names if name != quantity.owner]
        self.story.append(quantity)
        self.values.append(value)

    def _can_join(self, first: int, second: int) -> bool:
        owners = {self.story[k].owner for k in (first, second)}
        return len(owners) == 2 and self._is_current(first) and self._is_current(second)

    def _is_current(self, k: int) -> bool:
        """Whether the owner has no later number: a name in the story means the latest one."""
        return all(each.owner != self.story[k].owner for each in self.story[k + 1 :])


class _Writer:
    """Writes the solution of a story."""

    def __init__(
        self,
        draws: _Draws,
        story: Sequence[Quantity],
        values: Sequence[int],
        item: str,
        largest: int,
    ) -> None:
        self._draws, self._story, self._values = draws, story, values
        self._item, self._largest = item, largest

    def write(self, author: str, canvas: int, asked: int) -> str:
        """The solution by an author, cut to the sentences that are needed if the canvas is full."""
        # Sentences, each with whether the solution can do without it.
        sentences: list[tuple[str, bool]] = []
        for k, each in enumerate(self._story):
            for needed, text in self._step(author, k) if each.sign else ():
                sentences.append((f" {text}.", text != needed))
        if author == "chatty" and self._draws.chance(0.5):
            sentences.append((" that is what was asked.", True))
        sentences.append((f" #### {self._values[asked]}", False))
        over = sum(length(text) for text, _ in sentences) - canvas
        spare = [k for k, (_, can_go) in enumerate(sentences) if can_go]
        for k in self._draws.shuffled(spare):
            if over <= 0:
                break
            over -= length(sentences[k][0])
            sentences[k] = ("", True)
        return "".join(text for text, _ in sentences)

    def _step(self, author: str, k: int) -> list[tuple[str, str]]:
        """Sentences of a step, each with the one that cannot be left out."""
        each, result = self._story[k], self._values[k]
        a, b = self._values[each.left], each.right
        b = self._values[b] if each.is_index else b
        equation = f"{a} {each.sign} {b} = {result}"
        if author == "terse":
            return [(equation, equation)]
        if author == "brief":
            needed = f"{each.owner}: {equation}" if each.owner else equation
            return [(needed, needed)]
        subject = f"{each.owner} has" if each.owner else "in all there are"
        if each.sign == "-" and not each.owner:
            subject = "the difference is"
        link = self._draws.pick(("", "", "so ", "then ")) if author == "plain" else "so "
        needed = f"{link}{subject} {equation} {self._item}"
        before, after = [], []
        if author in ("careful", "chatty") and each.fact:
            known = self._draws.pick(("", "we know that ")) if author == "chatty" else ""
            before.append(known + each.fact)
        if author == "careful":
            used = [each.left, *([each.right] if each.is_index else [])]
            before += [f"{self._story[i].owner} has {self._values[i]} {self._item}" for i in used]
        if author in ("checking", "correcting"):
            after.append(f"check: {result} {_OPPOSITE[each.sign]} {b} = {a}")
        if author == "correcting" and self._draws.chance(0.3):
            slip = self._slip(each.sign, a, b)
            if slip is not None:
                wrong = _OPERATIONS[each.sign](slip, b)
                claim = f"{link}{subject} {a} {each.sign} {b} = {wrong} {self._item}"
                check = f"check: {wrong} {_OPPOSITE[each.sign]} {b} = {slip}"
                # One text, so that no mistake stays without its check.
                before.append(f"{claim}. {check}. let us look at that")
        if author == "chatty":
            if each.owner and self._draws.chance(0.5):
                start = self._draws.pick(("first", "now", "next", "let us")) + " look at"
                before.insert(0, f"{start} {each.owner}")
            if self._draws.chance(0.5):
                after.append(self._draws.pick(("good", "that is right", "that is good")))
        return [(needed, text) for text in (*before, needed, *after)]

    def _slip(self, sign: str, a: int, b: int) -> int | None:
        """A number near `a`, whose result the author takes for that of `a`; None: there is none."""
        near = [n for n in (a - 2, a - 1, a + 1, a + 2) if 0 < n <= self._largest]
        near = [n for n in near if 0 < _OPERATIONS[sign](n, b) <= self._largest]
        return self._draws.pick(near) if near else None


class _Ledger:
    """The quantities that a response has given so far, right or wrong.

    Attributes:
        values: claimed value of each quantity, by its index; those that the story states are known.
    """

    def __init__(self, story: Sequence[Quantity]) -> None:
        self._story = story
        self.values = {k: each.left for k, each in enumerate(story) if not each.sign}
        self._wrong: set[int] = set()

    def read(self, sentence: str) -> bool:
        """Whether a sentence with a number is right; what it claims is known from here on."""
        if (found := _EQUATION.search(sentence)) is not None:
            if sentence.startswith("check"):
                return self._check(found)
            return self._compute(found)
        if (found := _STATEMENT.search(sentence)) is not None:
            return any(
                self._story[k].owner == found["owner"] and value == int(found["value"])
                for k, value in self.values.items()
            )
        return any(sentence.endswith(each.fact) for each in self._story if each.fact)

    def _compute(self, found: re.Match[str]) -> bool:
        a, b, result = (int(found[name]) for name in ("left", "right", "result"))
        for k, each in enumerate(self._story):
            is_known = k in self.values and k not in self._wrong
            if is_known or each.sign != found["sign"]:
                continue
            if found["owner"] not in (None, each.owner):
                continue
            right = self.values.get(each.right) if each.is_index else each.right
            given = (self.values.get(each.left), right)
            if (a, b) == given or (each.sign in "+*" and (b, a) == given):
                self.values[k] = result
                is_right = _OPERATIONS[each.sign](a, b) == result
                (self._wrong.discard if is_right else self._wrong.add)(k)
                return is_right
        return False

    def _check(self, found: re.Match[str]) -> bool:
        a, b, result = (int(found[name]) for name in ("left", "right", "result"))
        return a in self.values.values() and _OPERATIONS[found["sign"]](a, b) == result
