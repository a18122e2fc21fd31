"""The public PyTorch samplers of LLaDA, for `python -m jax_unmask.bench --reference=THIS_FILE`.

Needs PyTorch and einops beside this package, and clones of the two public repositories, which
the environment names:

    git clone https://github.com/NVlabs/Fast-dLLM && git -C Fast-dLLM checkout 24cc59e
    export FAST_DLLM=$PWD/Fast-dLLM/llada
    git clone https://github.com/ML-GSAI/LLaDA && export LLADA=$PWD/LLaDA

Model class: Fast-dLLM's modeling_llada.py. Samplers: LLaDA's generate.py for fixed numbers of
tokens per step (in batches; its attention ignores padding, so prompts must have one length),
Fast-dLLM's generate.py for thresholds (which takes one prompt at a time).
"""

import contextlib
import importlib.util
import json
import os
import pathlib
import sys
from unittest import mock

import numpy as np
import torch
from safetensors.torch import load_file

FAST_DLLM, LLADA = (pathlib.Path(os.environ[name]) for name in ("FAST_DLLM", "LLADA"))
sys.path.insert(0, str(FAST_DLLM))

from model.configuration_llada import LLaDAConfig  # noqa: E402
from model.modeling_llada import LLaDAModelLM  # noqa: E402


def _module(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_IN_BATCHES = _module("public_llada_generate", LLADA / "generate.py")
_ONE_BY_ONE = _module("public_fast_dllm_generate", FAST_DLLM / "generate.py")
_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Model(torch.nn.Module):
    """Callable as the public samplers call it; keeps the mask id."""

    def __init__(self, inner, mask_id):
        super().__init__()
        self.inner, self.mask_id = inner, mask_id

    @property
    def device(self):
        return next(self.inner.parameters()).device

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


def load(model_dir):
    directory = pathlib.Path(model_dir)
    fields = json.loads((directory / "config.json").read_text())
    unknown = ("architectures", "model_type")
    config = LLaDAConfig(**{name: value for name, value in fields.items() if name not in unknown})
    config.use_cache = False  # The model reads it; transformers 5 sets it for no config.
    with _without_random_numbers():
        inner = LLaDAModelLM(config, init_params=False)
    weights = {}
    for path in sorted(directory.glob("*.safetensors")):
        weights.update(load_file(path, device=_DEVICE))
    # The model's own arrays, in float32 and on the host, are never written.
    missing, unexpected = inner.load_state_dict(weights, strict=False, assign=True)
    if missing or unexpected:
        raise ValueError(f"{model_dir}: missing tensors {missing}, unexpected ones {unexpected}")
    return Model(inner.to(_DEVICE).eval(), fields["mask_token_id"])


@contextlib.contextmanager
def _without_random_numbers():
    """Layers that are made in this block get no weights, which takes minutes for billions."""
    with contextlib.ExitStack() as stack:
        for kind in (torch.nn.Linear, torch.nn.Embedding):
            stack.enter_context(mock.patch.object(kind, "reset_parameters", lambda self: None))
        yield


@torch.no_grad()
def generate(model, prompts, *, gen_length, block_length, policy, settings):
    name, blocks = policy.partition(":")[0], gen_length // block_length
    common = {
        "gen_length": gen_length,
        "block_length": block_length,
        "temperature": 0.0,
        "mask_id": model.mask_id,
    }
    if name in ("top_confidence", "low_confidence"):
        if len({len(prompt) for prompt in prompts}) > 1:
            raise ValueError("the public attention ignores padding: give prompts of one length")
        steps = int(settings["steps"]) or -(-block_length // int(settings["tokens_per_step"]))
        # Only `low_confidence` counts steps as LLaDA does, over the whole canvas.
        if name == "top_confidence" or not int(settings["steps"]):
            steps *= blocks
        prompt = torch.tensor(prompts, device=_DEVICE)
        out = _IN_BATCHES.generate(model, prompt, steps=steps, remasking="low_confidence", **common)
        return out[:, prompt.shape[1] :].cpu().numpy(), steps
    if name == "threshold":
        rows, nfes = [], []
        for each in prompts:
            prompt = torch.tensor([each], device=_DEVICE)
            out, nfe = _ONE_BY_ONE.generate(
                model, prompt, steps=gen_length, threshold=settings["threshold"], **common
            )
            rows.append(out[0, len(each) :].cpu().numpy())
            nfes.append(nfe)
        return np.stack(rows), nfes
    raise ValueError(
        f"policy={policy!r} has no sampler in the public code; give top_confidence or threshold"
    )
