"""Problems in LeetCodeDataset's format (Xia et al., arXiv 2504.14655)."""

from collections.abc import Sequence

from jax_unmask.tasks import code, prompts, sandbox
from jax_unmask.tasks.base import Example, Split

_QUESTION = (
    "You are an expert Python programmer, and here is your task:\n\n{problem_description}\n\n"
    "Complete the class exactly as specified below.\n```python\n{starter_code}\n```"
)


class LeetCode(code.CodeTask):
    """LeetCode-style problems: a class `Solution`, and a function `check(candidate)` that tests it.

    An example has a `problem_description`, a `starter_code`, a `prompt` (imports and helpers, such
    as `ListNode`, that program and tests share), a `completion` (a right program), an `entry_point`
    such as `Solution().twoSum`, and a `test` that defines `check`.
    """

    name = "leetcode"
    hub = "newfacade/LeetCodeDataset"
    fields = (
        *("problem_description", "starter_code", "prompt"),
        *("completion", "entry_point", "test"),
    )

    def _stems(self, split: Split) -> Sequence[str]:
        return (*super()._stems(split), f"LeetCodeDataset.*{split}")

    def prompt(self, example: Example) -> prompts.Messages:
        """The problem with the class to complete; the response opens within a fence."""
        return prompts.turns(_QUESTION.format(**example), code.OPEN_FENCE)

    def target(self, example: Example) -> str:
        """The data set's program, and the closing fence."""
        return f"{example['completion']}\n{code.FENCE}"

    def job(self, example: Example, response: str) -> sandbox.Job:
        """The helpers with the response, and the problem's `check`."""
        return sandbox.Job(
            program=f"{example['prompt']}\n{code.opened_code(response)}",
            tests=(f"{example['test']}\ncheck({example['entry_point']})",),
            setup=example["prompt"],
            exports=("Solution",),
        )
