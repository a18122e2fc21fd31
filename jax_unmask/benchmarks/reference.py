"""Another implementation of the rollout, which the user provides as a Python file.

The file defines two functions:

    def load(model_dir: str):
        '''Returns a model. `model_dir` is a Hugging Face directory with the weights that are timed:
        config.json and safetensors (and a tokenizer, where the denoiser has one).'''

    def generate(model, prompts, *, gen_length, block_length, policy, settings):
        '''Fills one canvas per prompt.

        prompts: list of B lists of token ids, without padding.
        gen_length, block_length: ints.
        policy: the policy string as given, such as "threshold:threshold=0.9".
        settings: dict of its numeric settings, defaults included, such as {"threshold": 0.9}.

        Returns (tokens [B, gen_length], nfe), both on the host (NumPy arrays, nested lists, CPU
        tensors). nfe, the denoiser forwards that a row needed, is one number for all or [B].
        Returning them must wait for the device: the clock stops when `generate` returns.
        '''

It may import any package; the rest of the run does not import it.
"""

import dataclasses
import importlib.util
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from jax_unmask import denoisers
from jax_unmask.benchmarks.subjects import Subject
from jax_unmask.policies.base import Params
from jax_unmask.rollout import RolloutSettings

Result = tuple[Int[np.ndarray, "B L"], Int[np.ndarray, " B"]]
"""Final canvases, and denoiser forwards that each row needed."""


@dataclasses.dataclass(frozen=True)
class ReferenceSpeed:
    """Ours against theirs on the same prompts."""

    seconds: list[float]  # Of each repeat of theirs.
    sequences_per_second: float  # Theirs, from the median.
    speedup: float  # Our sequences per second by theirs, from the medians.
    speedup_by_turn: list[float]  # The same for each pair of neighbouring runs.
    speedup_at_equal_nfe: float  # If both had needed as many forwards, each at its speed.
    nfe_mean: float  # Theirs.
    nfe_equal: bool  # Every row needed as many forwards as ours.
    tokens_equal: bool  # All canvases are the same.
    rows_equal: float  # Fraction of canvases that are the same.
    positions_equal: float  # Fraction of positions that hold the same token.


@dataclasses.dataclass
class Reference:
    """A loaded implementation. Make it with `load_reference`."""

    path: pathlib.Path
    module: Any
    model: Any
    policy: str
    settings: dict[str, float]

    def generate(self, prompts: list[list[int]], settings: RolloutSettings) -> Result:
        """Fills the canvases.

        Raises:
            ValueError: what comes back has another shape than it should.
        """
        with _keeps_traceback(self.path, "generate"):
            returned = self.module.generate(
                self.model,
                prompts,
                gen_length=settings.gen_length,
                block_length=settings.block_length,
                policy=self.policy,
                settings=dict(self.settings),
            )
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise ValueError(f"{self.path}: generate must return (tokens, nfe)")
        tokens, nfe = (np.asarray(part) for part in returned)
        expected = (len(prompts), settings.gen_length)
        if tokens.shape != expected:
            raise ValueError(
                f"{self.path}: generate returned tokens of shape {tokens.shape}; [B, gen_length] "
                f"is {expected}, without the prompt"
            )
        if nfe.shape not in ((), expected[:1]):
            raise ValueError(
                f"{self.path}: generate returned nfe of shape {nfe.shape}; give one number, or "
                f"one per row ({expected[:1]})"
            )
        return tokens, np.broadcast_to(nfe, expected[:1])


def import_reference(path: pathlib.Path) -> Any:
    """Imports the file and checks that it defines what it must.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no Python file, or lacks a function.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--reference={path} is not a file")
    spec = importlib.util.spec_from_file_location(f"jax_unmask_reference_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"--reference={path} is not a Python file; its name must end with .py")
    module = importlib.util.module_from_spec(spec)
    # As if it had been imported by name: dataclasses and pickle look themselves up here.
    sys.modules[spec.name] = module
    with _keeps_traceback(path, "import"):
        spec.loader.exec_module(module)
    for name in ("load", "generate"):
        if not callable(getattr(module, name, None)):
            raise ValueError(
                f"--reference={path} defines no function {name}; it needs load(model_dir) and "
                "generate(model, prompts, *, gen_length, block_length, policy, settings)"
            )
    return module


@contextmanager
def load_reference(
    path: pathlib.Path, module: Any, subject: Subject, policy: str, policy_params: Params
) -> Iterator[Reference]:
    """Writes the subject's weights where the reference can read them, and has it load them.

    `module` is what `import_reference` made of the file; the scalars of the policy's parameters
    (top level) are the settings that it gets.
    """
    settings = {}
    for name, value in policy_params.items():
        if not isinstance(value, dict) and np.ndim(value) == 0:
            settings[name] = jax.device_get(value).item()
    with tempfile.TemporaryDirectory(prefix="jax_unmask_bench_") as directory:
        denoisers.save_pretrained(directory, subject.denoiser, subject.params, subject.tokenizer)
        with _keeps_traceback(path, "load"):
            model = module.load(directory)
        yield Reference(path, module, model, policy, settings)


def compare(
    our_seconds: Sequence[float], their_seconds: Sequence[float], ours: Result, theirs: Result
) -> ReferenceSpeed:
    """Ratios of speed, and whether both did the same."""
    median, their_median = statistics.median(our_seconds), statistics.median(their_seconds)
    (tokens, nfe), (their_tokens, their_nfe) = ours, theirs
    same = tokens == their_tokens
    speedup = their_median / median
    return ReferenceSpeed(
        seconds=list(their_seconds),
        sequences_per_second=len(tokens) / their_median,
        speedup=speedup,
        speedup_by_turn=[b / a for a, b in zip(our_seconds, their_seconds, strict=True)],
        speedup_at_equal_nfe=float(speedup * nfe.mean() / their_nfe.mean()),
        nfe_mean=float(their_nfe.mean()),
        nfe_equal=bool((nfe == their_nfe).all()),
        tokens_equal=bool(same.all()),
        rows_equal=float(same.all(axis=1).mean()),
        positions_equal=float(same.mean()),
    )


@contextmanager
def _keeps_traceback(path: pathlib.Path, doing: str) -> Iterator[None]:
    """Commands print ValueError and FileNotFoundError as mistakes of the user, without a traceback;
    those from inside the reference would be hard to place."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise RuntimeError(f"{path}: {doing} failed: {error}") from error
