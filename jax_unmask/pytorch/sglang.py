"""A learned unmasking policy for SGLang's `--dllm-algorithm`.

    python -m jax_unmask.pytorch.sglang
    echo 'policy: DIR' > unmask.yaml
    python -m sglang.launch_server --model-path=... --dllm-algorithm=JaxUnmask \\
        --dllm-algorithm-config=unmask.yaml

SGLang finds algorithms among the modules of its own package `sglang.srt.dllm.algorithm`, in every
process that it starts. So the first command writes a module of one line there, which imports
`JaxUnmask` from here.

The server forwards one block at a time, and that is all that a policy sees: it must have been
trained with `policy.context="block"`. The settings of the YAML file, beside SGLang's own
`block_size`: `policy` (the directory), `gen_length` (the canvas over which time is counted; by
default that of the training), `temperature`, `alpha`, `distribution`.
"""

import importlib
import logging
import pathlib
from typing import Any

import torch

from jax_unmask.pytorch.policy import UnmaskingPolicy, observe
from jax_unmask.runtime.files import atomic_write

_BASE = "sglang.srt.dllm.algorithm.base"
try:
    Base: Any = importlib.import_module(_BASE).DllmAlgorithm
except ModuleNotFoundError:  # Then only the documentation reads this.
    Base = object

_FILE = "jax_unmask.py"
_MODULE = "from jax_unmask.pytorch.sglang import JaxUnmask as Algorithm\n"
_SETTINGS = ("temperature", "alpha", "distribution")

logger = logging.getLogger(__name__)


class JaxUnmask(Base):
    """Fills the positions of a block that the policy chooses, with their most probable tokens.

    A policy that reads the time is told the forwards of the current block, as far as the server
    counts them: each block's state begins anew.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        settings = config.algorithm_config
        if "policy" not in settings:
            raise ValueError("--dllm-algorithm-config lacks `policy`, the directory of the policy")
        self.policy = UnmaskingPolicy.from_directory(settings["policy"])
        if self.policy.reads_canvas:
            raise ValueError(
                f"the policy {settings['policy']} reads the whole canvas (context 'full'), and the "
                "server shows one block; train it with config.policy.context='block'"
            )
        made = self.policy.made_for
        if made.get("block_length", self.block_size) != self.block_size:
            logger.warning(
                "The policy was trained for blocks of %d, here of %d",
                *(made["block_length"], self.block_size),
            )
        self.gen_length = int(settings.get("gen_length", made.get("gen_length", self.block_size)))
        for name in _SETTINGS:
            if name in settings:
                setattr(self.policy, name, settings[name])

    def init_step_state(self, forward_batch: Any) -> list[Any]:
        """The number of forwards of each block so far."""
        return [[0] for _ in range(forward_batch.batch_size)]

    def step(self, forward_batch: Any, logits_output: Any, states: list[Any]) -> list[bool]:
        """Fills positions in place; True for blocks whose last forward saw no mask any more."""
        # Earlier versions give the logits themselves.
        full = getattr(logits_output, "full_logits", logits_output)
        rows = forward_batch.batch_size
        logits = full.view(rows, self.block_size, -1)
        tokens = forward_batch.input_ids.view(rows, self.block_size)
        masked = tokens == self.mask_id
        done = ~masked.any(dim=1)
        policy = self.policy.to(logits.device)
        steps = torch.tensor([state[0] for state in states], device=logits.device)
        for state in states:
            state[0] += 1
        t = steps / self.gen_length
        obs = observe(logits, masked, masked, t, top_k=policy.top_k, mask_id=self.mask_id)
        filled = torch.where(policy.fill(obs), obs.candidate.to(tokens.dtype), tokens)
        # The same tensor: graphs of the device hold its address.
        forward_batch.input_ids.copy_(filled.view(-1))
        return [bool(value) for value in done.tolist()]


def install() -> pathlib.Path:
    """Writes the module by which SGLang finds the algorithm; returns its path."""
    path = pathlib.Path(str(importlib.import_module(_BASE).__file__)).with_name(_FILE)
    atomic_write(path, _MODULE)
    return path


if __name__ == "__main__":
    print(f"--dllm-algorithm=JaxUnmask is now known through {install()}")
