"""Converts a model: `python -m jax_unmask.convert --source=HF_DIR --output=ORBAX_DIR`.

From Hugging Face's layout to Orbax and back, whatever the family, bit for bit unless another type
is asked for. The tokenizer comes along.
"""

import argparse
import logging
import pathlib
from collections.abc import Sequence

import jax

from jax_unmask import denoisers, tasks
from jax_unmask.commands import command_line
from jax_unmask.denoisers import diffusion_gemma, hub
from jax_unmask.denoisers.orbax_files import has_orbax_files
from jax_unmask.denoisers.tensor_files import MAX_SHARD_BYTES
from jax_unmask.denoisers.tokenizer import has_tokenizer
from jax_unmask.runtime import terminal
from jax_unmask.runtime.files import local_path
from jax_unmask.settings import FlagError, SettingError, naming
from jax_unmask.shipped import shipped_lengths, shipped_models

logger = logging.getLogger(__name__)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    described = command_line.Parser(
        prog="python -m jax_unmask.convert",
        description="Writes a model in the other layout; memory holds it once.",
    )
    add = described.add_argument
    add(
        "--source",
        required=True,
        help="a Hugging Face or Orbax directory, a hub name, or a shipped model "
        f"({', '.join(shipped_models())})",
    )
    add("--output", required=True, help="directory to make")
    add("--to", choices=("orbax", "hf"), help="default: what the source is not")
    add("--param_dtype", choices=("float32", "bfloat16"), help="default: as stored")
    add("--mask_token_id", type=int, help="the mask token, where the source's files name none")
    add(
        "--max_shard_gb",
        type=float,
        default=MAX_SHARD_BYTES / 1e9,
        help="size of a safetensors file; default: %(default)g",
    )
    return described


def convert(
    source: str,
    output: pathlib.Path,
    *,
    to: str | None = None,
    param_dtype: str | None = None,
    mask_token_id: int | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> str:
    """Writes a model in another layout; returns which one, "orbax" or "hf".

    Args:
        source: a directory, a hub name, or a shipped model.
        output: directory to make; must not exist, or be empty.
        to: "orbax" or "hf"; by default the one that the source is not.
        param_dtype: type of the weights; by default as stored.
        mask_token_id: see `denoisers.from_pretrained`.
        max_shard_bytes: limit of a safetensors file.

    Raises:
        SettingError: there is something in `output`; the source is missing, lacks a file, or its
            files do not fit together.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        remedy = "Choose another directory or remove it"
        raise SettingError("output", str(output), f"{output} is not empty", remedy)
    if max_shard_bytes < 1:
        raise SettingError("max_shard_bytes", max_shard_bytes, "it must be at least 1", "Raise it")
    with naming("source", source):
        directory = hub.local_directory(source)
        if to is None:
            to = "hf" if has_orbax_files(directory) else "orbax"
        is_masked = not diffusion_gemma.is_model(directory)
        # The tokenizer comes first: it is quick to load and most mistakes show there.
        tokenizer = None
        if has_tokenizer(directory):
            tokenizer = denoisers.load_tokenizer(directory, needs_mask=is_masked)
    if not is_masked:
        with naming("source", source):
            loaded = diffusion_gemma.load(directory, param_dtype=param_dtype)
        if to == "orbax":
            diffusion_gemma.save_orbax(output, loaded)
        else:
            diffusion_gemma.save(output, loaded, max_shard_bytes=max_shard_bytes)
        hub.copy_companions(directory, output)
        logger.info("%s: diffusion_gemma, %s", output, loaded.model.config.param_dtype)
        return to
    with naming("source", source):
        denoiser, params = denoisers.from_pretrained(
            directory, param_dtype=param_dtype, mask_token_id=mask_token_id
        )
    if to == "orbax":
        denoisers.save_orbax(output, denoiser, params, tokenizer)
    else:
        denoisers.save_pretrained(
            output, denoiser, params, tokenizer, max_shard_bytes=max_shard_bytes
        )
    hub.copy_companions(directory, output)
    config = denoiser.config
    logger.info(
        "%s: %s, %s, %s parameters of type %s%s.",
        output,
        {"orbax": "Orbax", "hf": "Hugging Face"}[to],
        config.family,
        f"{denoisers.count_params(config):,}",
        config.param_dtype,
        "" if tokenizer is not None else "; the source has no tokenizer",
    )
    return to


def next_command(directory: pathlib.Path, name: str, source: str = "") -> list[str]:
    """The command that uses a model by its name here or on the hub; `source`: a copy of which."""
    if not has_tokenizer(directory):
        lengths = ["--gen_length=128", "--block_length=128"]
        return ["bench", f"--model={name}", *lengths, "--batch_sizes=1"]
    if source in shipped_models():
        _, length, block = shipped_lengths(source)
        lengths = [f"--gen_length={length}", f"--block_length={block}"]
        posed = [f"--task={source}", *tasks.shown_problem(source)]
        return ["generate", f"--model={name}", *posed, *lengths]
    return ["generate", f"--model={name}", "--prompt=Why is the sky blue?"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    # Nothing is computed, and the memory of the host is the larger one.
    jax.config.update("jax_platforms", "cpu")
    with command_line.parsed(parser(), arguments) as args:
        if not 0 < args.max_shard_gb < 1e9:
            problem = "it must be above 0, and finite"
            raise FlagError("max_shard_gb", args.max_shard_gb, problem, "Correct it")
        output = local_path(args.output)
        convert(
            args.source,
            output,
            to=args.to,
            param_dtype=args.param_dtype,
            mask_token_id=args.mask_token_id,
            max_shard_bytes=int(args.max_shard_gb * 1e9),
        )
        terminal.conclude(terminal.verdict([], then=next_command(output, str(output), args.source)))
