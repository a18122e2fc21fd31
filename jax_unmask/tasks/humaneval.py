"""HumanEval: functions from their docstrings (Chen et al., arXiv 2107.03374)."""

from jax_unmask.tasks import code, prompts, sandbox
from jax_unmask.tasks.base import Example

_QUESTION = (
    "Write a solution to the following problem and make sure that it passes the tests:\n"
    "```python\n{prompt}\n```\n"
)
_OPENED = "Here is the completed function:\n```python\n{prompt}\n"


class HumanEval(code.CodeTask):
    """HumanEval, a test set of 164 problems.

    The prompt is the published zero-shot one. It opens the response with the function's head, so a
    response is the function's body.
    """

    name = "humaneval"
    fields = ("prompt", "entry_point", "canonical_solution", "test")
    hub = "openai/openai_humaneval"
    test_stem = "HumanEval"
    test_only = True

    def prompt(self, example: Example) -> prompts.Messages:
        """The published prompt, with the response opened."""
        head = example["prompt"]
        return prompts.turns(_QUESTION.format(prompt=head), _OPENED.format(prompt=head))

    def problem(self, example: Example) -> str:
        """The head of the function."""
        return str(example["prompt"])

    def target(self, example: Example) -> str:
        """The data set's function body, and the closing fence."""
        return f"{example['canonical_solution']}\n{code.FENCE}"

    def job(self, example: Example, response: str) -> sandbox.Job:
        """The prompt with the response as its body, and the problem's `check`."""
        name = example["entry_point"]
        return sandbox.Job(
            program=f"{example['prompt']}\n{code.opened_code(response)}",
            tests=(f"{example['test']}\ncheck({name})",),
            # Tests may use the other functions of the prompt, which need not be the response's.
            setup=f"{example['prompt']}\n    pass",
            exports=(name,),
        )
