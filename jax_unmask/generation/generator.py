"""The call that answers prompts: `jax_unmask.Generator`.

Nothing is imported here that takes time; JAX comes with the first model.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jax_unmask.generation.answers import Answers, Writer
    from jax_unmask.generation.decoding import Prompt, Step
    from jax_unmask.rollout import Watcher


class Generator:
    """A denoiser that answers prompts under an unmasking policy.

    >>> generator = Generator.from_pretrained("sudoku", policy="threshold:threshold=0.9")
    >>> (answer,) = generator.generate(["1...2...3...4...="])
    >>> answer.text, answer.nfe
    ('1432234131244213', 11)

    Compiled programs are kept over calls: prompts are padded to multiples of `pad_to` tokens and
    batches to 1, 2, 4, ... rows, neither of which changes an answer, and settings of a policy that
    are numbers compile nothing.
    """

    def __init__(self, writer: "Writer", *, seed: int = 0) -> None:
        """Wraps a loaded model; see `from_pretrained`."""
        self.writer, self.seed = writer, seed

    @classmethod
    def from_pretrained(
        cls, model: str | None = None, policy: str | None = None, *, seed: int = 0, **decoding: Any
    ) -> "Generator":
        """Loads a model.

        Args:
            model: a shipped model, a Hugging Face or Orbax directory, or a hub name; None for
                that for which the policy was trained.
            policy: in the notation of `policies.parse_policy`, as in
                "learned:universal" or "threshold:threshold=0.9"; by default "learned:universal"
                for the denoisers that it was trained on, a threshold of 0.9 for others.
            seed: of all draws, unless a call gives another.
            **decoding: the fields of `Decoding`; by default as the policy was trained.

        Raises:
            ValueError: something does not fit, or does not exist; before the weights are read,
                where it shows then.
        """
        from jax_unmask.generation import answers
        from jax_unmask.generation.decoding import Decoding

        named, policy, how = answers.fitted(model, policy, Decoding(**decoding))
        return cls(answers.load(named, policy, how), seed=seed)

    def generate(
        self,
        prompts: "Sequence[Prompt] | str",
        *,
        seed: int | None = None,
        turn: int = 0,
        record: bool = False,
        batch_size: int = 16,
        pad_to: int = 64,
        watch: "Watcher | None" = None,
        **settings: Any,
    ) -> "Answers":
        """Answers prompts.

        Args:
            prompts: texts, or conversations (lists of messages).
            seed: of all draws.
            turn: number of the first answer; each has random numbers of its own.
            record: keeps every step, for the viewer.
            batch_size: rows per forward at most.
            pad_to: prompts are padded to a multiple of this length, where there is room.
            watch: called with canvases and step maps after each forward, while the rollout runs;
                each function compiles a program of its own. (`stream` does not.)
            **settings: of the policy, instead of those that it was loaded with: `nfe=8` for eight
                forwards, `alpha=3`, `threshold=0.8`, ...

        Returns:
            One answer for each prompt, in their order.

        Raises:
            ValueError: a prompt does not fit, or the policy has no such setting.
            FloatingPointError: the denoiser's scores are not finite.
        """
        from jax_unmask.generation import answers

        return answers.answer_all(
            self.writer,
            [prompts] if isinstance(prompts, str) else prompts,
            settings,
            seed=self.seed if seed is None else seed,
            turn=turn,
            batch_size=batch_size,
            pad_to=pad_to,
            with_records=record,
            watch=watch,
        )

    def stream(
        self,
        prompt: "Prompt",
        *,
        seed: int | None = None,
        turn: int = 0,
        pad_to: int = 64,
        **settings: Any,
    ) -> "Iterator[Step]":
        """Yields the canvas after each forward; the last is what `generate` gives.

        >>> generator = Generator.from_pretrained("sudoku", policy="threshold:threshold=0.9")
        >>> for step in generator.stream("1...2...3...4...=", threshold=0.5):
        ...     print(step)
        14______________
        1432____________
        14322341________
        143223413224____
        1432234132244113
        """
        from jax_unmask.generation import answers

        tokens = answers.encode(self.writer, prompt)
        width = answers.padded_width(self.writer, len(tokens), pad_to)
        seed = self.seed if seed is None else seed
        return self.writer.steps(tokens, width, seed, turn, settings)
