"""DiffusionGemma on disk: Hugging Face's layout, read and written bit for bit, and Orbax.

The file holds the decoder; the encoder's weights are tied to it but for a scalar per layer. Tensors
of the vision tower stay on the host unchanged, so that saving loses nothing.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike
from safetensors.numpy import load_file, save_file

from jax_unmask.denoisers import hub
from jax_unmask.denoisers.diffusion_gemma.config import (
    MODEL_TYPE,
    DiffusionGemmaConfig,
    config_from_hf,
)
from jax_unmask.denoisers.diffusion_gemma.model import DiffusionGemma
from jax_unmask.denoisers.families.base import TensorSpec
from jax_unmask.denoisers.families.qwen import MLP
from jax_unmask.denoisers.orbax_files import (
    has_orbax_files,
    new_orbax_item,
    read_orbax_files,
    write_orbax_item,
)
from jax_unmask.denoisers.tensor_files import (
    MAX_SHARD_BYTES,
    TensorFiles,
    TensorMap,
    widest,
    write_tensor_files,
)
from jax_unmask.denoisers.transformer import Params
from jax_unmask.runtime.files import replacing

_CARRIED = ("model.encoder.vision_tower.", "model.encoder.embed_vision.")
_ENCODER = "model.encoder.language_model."
_CARRIED_FILE = "carried.safetensors"  # Beside an Orbax checkpoint.


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model, its parameters and its configuration, loaded from a directory."""

    model: DiffusionGemma
    params: Params
    fields: Mapping[str, Any]  # The parsed `config.json`.
    carried: Mapping[str, np.ndarray]  # Tensors that are not used, by name.


def is_model(directory: pathlib.Path) -> bool:
    """Whether the model of a directory is a DiffusionGemma, by its `config.json`."""
    return hub.read_json(directory / "config.json").get("model_type") == MODEL_TYPE


def load(
    path: str | os.PathLike[str],
    *,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike | None = None,
) -> Checkpoint:
    """Loads a DiffusionGemma.

    Args:
        path: a directory with `config.json` and safetensors or Orbax weights, or a hub name.
        dtype: type of the computation; by default that of the parameters.
        param_dtype: type of the parameters; by default as stored (the widest, where they differ).

    Raises:
        FileNotFoundError: the directory or a file of it is missing.
        ValueError: the config is not supported, or the tensors are not exactly those that it calls
            for; the message lists them.
    """
    directory = hub.local_directory(path)
    fields = hub.read_json(directory / "config.json")
    with hub.reading_config(directory):
        config = config_from_hf(fields)
    carried: dict[str, np.ndarray]
    if has_orbax_files(directory):
        params, param_dtype = read_orbax_files(directory, abstract_params(config), param_dtype)
        carried = load_file(directory / _CARRIED_FILE)
    else:
        files, tensors = TensorFiles(directory), TensorMap(specs(config), abstract_params(config))
        kept = {name: s for name, s in files.shapes.items() if name.startswith(_CARRIED)}
        # The encoder's matrices, and the output projection, are those of the decoder.
        copies = {name.replace("model.decoder.", _ENCODER): name for name in tensors.shapes}
        copies["lm_head.weight"] = "model.decoder.embed_tokens.weight"
        files.reconcile(tensors.shapes | kept, copies)
        carried = {name: files.read(name) for name in sorted(kept)}
        if param_dtype is None:
            param_dtype = widest(files.dtypes[name] for name in tensors.shapes)
        read = functools.partial(tensors.read, files=files, dtype=np.dtype(param_dtype))
        params = unflatten_dict({path: jnp.asarray(read(path)) for path in tensors.paths})
    config = dataclasses.replace(config, param_dtype=param_dtype, dtype=dtype or param_dtype)
    return Checkpoint(DiffusionGemma(config), params, fields, carried)


def save(
    directory: str | os.PathLike[str],
    checkpoint: Checkpoint,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes a directory that `load` and the published class read; the config file comes last.

    Args:
        directory: made if missing; an existing model in it is replaced.
        checkpoint: what to write, each tensor in the type that it has.
        max_shard_bytes: weights beyond this size are split over several files.
    """
    directory = hub.begin_saving(directory)
    flat, config = flatten_dict(checkpoint.params), checkpoint.model.config
    tensors = TensorMap(specs(config), checkpoint.params)
    sizes = {name: tensors.nbytes(name, flat) for name in tensors.shapes}
    sizes |= {name: value.nbytes for name, value in checkpoint.carried.items()}

    def read(name: str) -> np.ndarray:
        carried = checkpoint.carried.get(name)
        return tensors.write(name, flat) if carried is None else carried

    write_tensor_files(directory, sizes, read, max_shard_bytes)
    _write_config(directory, checkpoint)


def save_orbax(directory: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Writes an Orbax directory, with the same `config.json`; `load` reads it.

    Raises:
        FileExistsError: the directory already holds a checkpoint.
    """
    item = new_orbax_item(pathlib.Path(directory))
    directory = hub.begin_saving(directory)
    write_orbax_item(item, checkpoint.params)
    with replacing(directory / _CARRIED_FILE) as partial:
        save_file(dict(checkpoint.carried), partial)
    _write_config(directory, checkpoint)


def _write_config(directory: pathlib.Path, checkpoint: Checkpoint) -> None:
    fields = {**checkpoint.fields, "dtype": str(checkpoint.model.config.param_dtype)}
    hub.finish_saving(directory, fields)


def specs(config: DiffusionGemmaConfig) -> list[TensorSpec]:
    """Every tensor of the text model and the parameter that it fills.

    The file has [out, in] where a parameter has [in, out], for experts on the last two axes.
    """
    top = {
        "embed_tokens.weight": "embedding",
        "norm.weight": "final_norm/scale",
        "self_conditioning.pre_norm.weight": "conditioning_norm/scale",
    }
    top |= {
        f"self_conditioning.{theirs}": f"conditioning_mlp/{ours}/kernel"
        for theirs, ours in MLP.items()
    }
    names = {
        "input_layernorm.weight": "attention_norm/scale",
        "post_attention_layernorm.weight": "after_attention_norm/scale",
        "pre_feedforward_layernorm.weight": "mlp_norm/scale",
        "post_feedforward_layernorm_1.weight": "after_mlp_norm/scale",
        "pre_feedforward_layernorm_2.weight": "experts_norm/scale",
        "post_feedforward_layernorm_2.weight": "after_experts_norm/scale",
        "post_feedforward_layernorm.weight": "after_both_norm/scale",
        "layer_scalar": "scalar",
        "self_attn.q_proj.weight": "query/kernel",
        "self_attn.k_proj.weight": "key/kernel",
        "self_attn.v_proj.weight": "value/kernel",
        "self_attn.o_proj.weight": "attention_out/kernel",
        "self_attn.q_norm.weight": "query_norm/scale",
        "self_attn.k_norm.weight": "key_norm/scale",
        "router.proj.weight": "experts/router/kernel",
        "router.scale": "experts/router_scale",
        "router.per_expert_scale": "experts/expert_scale",
        "experts.gate_up_proj": "experts/gate_up",
        "experts.down_proj": "experts/down",
        **{f"mlp.{theirs}": f"mlp/{ours}/kernel" for theirs, ours in MLP.items()},
    }

    def spec(name: str, *path: str) -> TensorSpec:
        turned = path[-1] == "kernel" or path[-2:] in (("experts", "gate_up"), ("experts", "down"))
        return TensorSpec(f"model.{name}", path, transpose=turned)

    found = [spec(f"decoder.{name}", *path.split("/")) for name, path in top.items()]
    for index, layer in enumerate(config.layers):
        here = f"layers_{index}"
        found += [
            spec(f"decoder.layers.{index}.{name}", here, *path.split("/"))
            for name, path in names.items()
            if layer.is_sliding or path != "value/kernel"
        ]
        own = f"encoder.language_model.layers.{index}.layer_scalar"
        found.append(spec(own, here, "encoder_scalar"))
    return found


def abstract_params(config: DiffusionGemmaConfig) -> Params:
    """Shapes and types of the parameters, without any memory."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    init = lambda: DiffusionGemma(config).init(jax.random.key(0), tokens, tokens)
    return jax.eval_shape(init)["params"]
