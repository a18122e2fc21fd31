"""Finds training problems that occur in a test set, exactly or in part, and reports them.

    python -m jax_unmask.tasks.decontamination --train math:DIR --test math500:DIR --test aime24:DIR

Texts are compared as sequences of words and numbers, in lower case. Two problems overlap if they
are the same (exact), or if they share n words in a row (n-gram; n = 13 as for GPT-3, arXiv
2005.14165). A test problem of fewer words than n counts when the whole of it occurs.
"""

import argparse
import dataclasses
import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from jax_unmask import tasks
from jax_unmask.tasks.base import Example, Split

_WORD = re.compile(r"[^\W_]+")
# Fields of examples that contain the text of a problem.
_FIELDS = ("question", "problem", "text", "prompt", "problem_description", "input", "Puzzle")
_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Overlap:
    """Pairs of a training and a test problem.

    Attributes:
        exact: (training index, test index) of problems that are the same.
        ngram: the same of problems that share n words in a row, exact ones included.
        train: number of training problems.
        test: number of test problems.
        n: words that must agree.
    """

    exact: list[tuple[int, int]]
    ngram: list[tuple[int, int]]
    train: int
    test: int
    n: int

    def contaminated(self) -> list[int]:
        """Indices of the training problems to leave out, in ascending order."""
        return sorted({index for index, _ in self.ngram})

    def summary(self) -> str:
        """The numbers in one line."""
        tests = len({index for _, index in self.ngram})
        return (
            f"{self.train} training and {self.test} test problems: {len(self.exact)} exact pairs, "
            f"{len(self.ngram)} pairs with {self.n} words in common; {len(self.contaminated())} "
            f"training problems touch {tests} test problems"
        )


def overlap(train: Iterable[str], test: Sequence[str], *, n: int = 13) -> Overlap:
    """Compares every training text with every test text, in time linear in their length.

    `n` words in a row must agree.

    Raises:
        ValueError: n is less than 1.
    """
    if n < 1:
        raise ValueError(f"n={n} must be at least 1")
    tests = [_words(text) for text in test]
    whole = defaultdict(list)
    grams = defaultdict(set)
    for index, words in enumerate(tests):
        whole[words].append(index)
        for gram in _grams(words, min(n, len(words))):
            grams[gram].add(index)
    lengths = sorted({len(gram) for gram in grams} - {0})
    exact, shared, count = [], [], 0
    for count, text in enumerate(train, start=1):
        words = _words(text)
        same = whole.get(words, []) if words else []
        exact += [(count - 1, index) for index in same]
        found = {i for size in lengths for gram in _grams(words, size) for i in grams.get(gram, ())}
        shared += [(count - 1, index) for index in sorted(found.union(same))]
    return Overlap(exact, shared, train=count, test=len(tests), n=n)


def text(example: Example) -> str:
    """The problem text of an example; raises ValueError if no field of a known name has it."""
    for field in _FIELDS:
        if isinstance(example.get(field), str):
            return example[field]
    raise ValueError(f"an example has none of the fields {list(_FIELDS)}: {sorted(example)}")


def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text.lower()))


def _grams(words: tuple[str, ...], n: int) -> Iterator[tuple[str, ...]]:
    return (words[k : k + n] for k in range(len(words) - n + 1)) if n else iter(())


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a report for each pair of training and test set."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for split in ("train", "test"):
        help_text = f"a task with a {split} set, as NAME:PATH; may be given several times"
        parser.add_argument(f"--{split}", action="append", required=True, help=help_text)
    parser.add_argument("--n", type=int, default=13, help="words in a row that must agree")
    args = parser.parse_args(arguments)
    try:
        trains, tests = (
            {name: _texts(name, split) for name in getattr(args, split)}
            for split in ("train", "test")
        )
        for (train, given), (test, texts) in itertools.product(trains.items(), tests.items()):
            found = overlap(given, texts, n=args.n)
            print(f"{train} in {test}: {found.summary()}")
            for kind, pairs in (("exact", found.exact), (f"{args.n} words", found.ngram)):
                for first, second in pairs[:_SHOWN]:
                    print(f"  {kind}: train {first} / test {second}: {texts[second][:90]!r}")
    except (ValueError, OSError) as error:
        parser.error(str(error))


def _texts(name: str, split: Split) -> list[str]:
    source = tasks.parse(name).source(split)
    return [text(source[k]) for k in range(len(source))]


if __name__ == "__main__":
    main()
