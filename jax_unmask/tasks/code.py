"""The base of tasks whose responses are programs, which tests check in a sandbox."""

import abc
import dataclasses
import re
from collections.abc import Callable, Sequence

from jax_unmask.settings import setting
from jax_unmask.tasks import sandbox
from jax_unmask.tasks.base import Example, SlowTask
from jax_unmask.tasks.from_files import FileTask

FENCE = "```"
OPEN_FENCE = FENCE + "python\n"
_FENCE_LINE = re.compile(r"\s{0,3}(?:```+|~~~+)[^`\n]*$", re.MULTILINE)
# How code begins, in contrast to prose: an indented line, a keyword, a decorator, an assignment.
_CODE = re.compile(
    r"\s*?(?:(?: {2,}|\t)\S|(?:def|class|import|from|return|for|while|if|try|with|async)\b"
    r"|[@#\"'(]|[A-Za-z_][\w.\[\], ]*=(?!=)|[A-Za-z_][\w.]*\()"
)
_STRING = re.compile(r"\"\"\".*?\"\"\"|'''.*?'''|\"(?:[^\"\\\n]|\\.)+\"|'(?:[^'\\\n]|\\.)+'")
_TRIPLE = ('"""', "'''")
# Three quotes, a string on one line, a comment, a character that quotes the next.
_TOKEN = re.compile(r"\"\"\"|'''|\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'|#|\\.")


@dataclasses.dataclass(frozen=True)
class CodeTask(SlowTask, FileTask):
    """A task whose responses are programs, checked by running tests.

    Attributes:
        box: where programs run; None is one sandbox that all tasks of this process share.
    """

    _: dataclasses.KW_ONLY
    partial: bool = setting(False, "Score programs by the share of tests passed, not all or none.")
    box: sandbox.Sandbox | None = None

    def _read(self, example: Example) -> Example:
        example = super()._read(example)
        self.job(example, "")  # Else a damaged record would end a training when its turn comes.
        return example

    @abc.abstractmethod
    def job(self, example: Example, response: str) -> sandbox.Job:
        """The program that a response makes, with its tests."""

    def render(self, example: Example, response: str | None = None) -> str:
        """The problem without examples for the model, and the program that is run."""
        problem = self.problem(example).strip()
        if response is None:
            return problem
        return f"{problem}\n\n{self.job(example, response).program.strip()}"

    def problem(self, example: Example) -> str:
        """The problem as people read it: what the user says."""
        prompt = self.prompt(example)
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        return next(turn["content"] for turn in reversed(turns) if turn["role"] == "user")

    def start_checks(
        self, examples: Sequence[Example], responses: Sequence[str]
    ) -> Callable[[], list[float]]:
        """Starts `check_batch`; responses that make the same program run once."""
        box = self.box or sandbox.shared()
        jobs = [self.job(e, r) for e, r in zip(examples, responses, strict=True)]
        running = {job: box.submit(job) for job in dict.fromkeys(jobs)}

        def scores() -> list[float]:
            found = {job: sandbox.outcome(each.result()) for job, each in running.items()}
            if self.partial:
                shares = {job: each.passed / max(each.total, 1) for job, each in found.items()}
                return [shares[job] for job in jobs]
            return [float(found[job].right) for job in jobs]

        return scores


def opened_code(response: str) -> str:
    r"""The code of a response to a prompt that opened a fence: all up to the closing one.

    A response that opens a fence of its own, at once or after some prose, states the code in there.
    Fences within a string of three quotes are part of the code.

    >>> opened_code("    return x\n```\nDone."), opened_code("Sure:\n```python3\nx = 1\n```")
    ('    return x\n', 'x = 1\n')
    """
    lines, start = response.splitlines(keepends=True), 0
    for place in [k for k, line in enumerate(lines) if _FENCE_LINE.match(line)]:
        # A later one counts if it names a language, as the end of code does not.
        if start and not lines[place].strip(" \r\n`~"):
            continue
        before = "".join(lines[start:place])
        if before.strip() and _CODE.match(before):
            break
        start = place + 1
    lines = lines[start:]
    kept, quotes = [], ""
    for line in lines:
        outside = _STRING.sub(lambda found: " " * len(found[0]), line)
        if not quotes and line.strip() == "~~~":
            break
        if not quotes and FENCE in outside:
            kept.append(line[: outside.index(FENCE)])
            break
        kept.append(line)
        quotes = _open_quotes(line, quotes)
    return "".join(kept)


def _open_quotes(line: str, quotes: str) -> str:
    """The three quotes of the string in which a line ends; `quotes` is that in which it begins."""
    for token in _TOKEN.findall(line):
        if quotes:
            quotes = "" if token == quotes else quotes
        elif token in ("#", "\n"):
            break
        elif token in _TRIPLE:
            quotes = token
    return quotes
