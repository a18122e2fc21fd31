"""Puts policies and denoisers on the Hugging Face hub, and fetches them.

    python -m jax_unmask.hub push runs/gsm8k --name=OWNER/NAME
    python -m jax_unmask.hub pull OWNER/NAME --output=DIR

Whatever takes a directory of a policy or of a model also takes the hub's name itself.
"""

import argparse
import pathlib
import re
import shutil
import tempfile
from collections.abc import Sequence

from jax_unmask import tasks
from jax_unmask.commands import command_line, convert
from jax_unmask.denoisers import hub
from jax_unmask.policies import policy_directory
from jax_unmask.policies.calibration import FILE as CALIBRATIONS
from jax_unmask.policies.checkpoint import CONFIG, WEIGHTS, made_for
from jax_unmask.report.model_card import CARD, denoiser_card
from jax_unmask.runtime import terminal
from jax_unmask.runtime.exports import EXPORTS
from jax_unmask.runtime.files import atomic_write, local_path
from jax_unmask.settings import FlagError

_HERE = re.compile(r"(--(?:policy=learned:|model=))\.(?=[\s,]|$)")
_LOCAL_BASE = re.compile(r'^base_model: "[./~].*\n', re.MULTILINE)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    described = command_line.Parser(
        prog="python -m jax_unmask.hub", description="Shares policies and denoisers by hub name."
    )
    add = described.add_argument
    add("verb", choices=("push", "pull"), help="upload, or download")
    add(
        "what",
        help="push: a policy, a denoiser in Hugging Face's layout, the workdir of a run with one, "
        "or a shipped policy; pull: OWNER/NAME on the hub",
    )
    add("--name", help="push: OWNER/NAME on the hub; made if it is new")
    add("--private", action="store_true", help="push: make it private if it is new")
    add("--output", help="pull: directory to make")
    return described


def push(directory: pathlib.Path, name: str, *, private: bool = False) -> str:
    """Uploads a policy or a denoiser with its card; returns the address of the commit.

    Raises:
        FileNotFoundError: the directory holds neither.
    """
    import huggingface_hub

    hub.check_name(name)
    source = _source(directory)
    with tempfile.TemporaryDirectory() as made:
        card = pathlib.Path(made) / CARD
        atomic_write(card, _card(source, name))
        api = huggingface_hub.HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        files = [CONFIG, WEIGHTS, CALIBRATIONS]
        if not (source / CONFIG).is_file():
            files = [*hub.FILES, "*.index.json"]
        api.upload_folder(repo_id=name, folder_path=source, allow_patterns=files)
        done = api.upload_file(path_or_fileobj=card, path_in_repo=CARD, repo_id=name)
    return str(done.commit_url)


def pull(name: str, output: pathlib.Path) -> None:
    """Downloads everything that has a name on the hub to a directory."""
    shutil.copytree(hub.download(name, None), output, dirs_exist_ok=True)


def _source(directory: pathlib.Path) -> pathlib.Path:
    policy, denoiser = (directory / EXPORTS[each].directory for each in ("policy", "denoiser"))
    for place in (directory / CONFIG, policy / CONFIG, denoiser):
        if place.exists():
            return place if place.is_dir() else place.parent
    # A run has a config.json too.
    if (directory / "config.json").is_file() and list(directory.glob("*.safetensors")):
        return directory
    raise FileNotFoundError(
        f"{directory} holds no policy ({CONFIG}) and no denoiser (config.json with "
        f"model.safetensors), nor does a folder {policy.name}/ or {denoiser.name}/ in it"
    )


def _card(source: pathlib.Path, name: str) -> str:
    """The card, with the hub's name where it says `.`; a short one for denoisers without."""
    if (source / CARD).is_file():
        text = (source / CARD).read_text(encoding="utf-8")
    elif (source / CONFIG).is_file():
        raise FileNotFoundError(
            f"{source} has no {CARD}; train or evaluate the policy, which writes one"
        )
    else:
        text = denoiser_card(source)
    return _HERE.sub(rf"\g<1>{name}", _LOCAL_BASE.sub("", text))


def next_command(directory: pathlib.Path, name: str) -> list[str]:
    """The command that uses what lies in a directory, by its name here or on the hub."""
    source = _source(directory)
    if (source / CONFIG).is_file():
        made = made_for(source)
        posed = tasks.shown_problem(made[0].task) if made else []
        return ["generate", f"--policy=learned:{name}", *posed]
    return convert.next_command(source, name)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    with command_line.parsed(parser(), arguments) as args:
        needed = "name" if args.verb == "push" else "output"
        if getattr(args, needed) is None:
            raise FlagError(needed, None, f"{args.verb} needs it", "Give it")
        if args.verb == "pull":
            pull(args.what, local_path(args.output))
            found, used = f"{args.what} is in {args.output}.", local_path(args.output)
            terminal.conclude(terminal.verdict([found], then=next_command(used, str(used))))
            return
        directory = local_path(args.what)
        directory = directory if directory.exists() else policy_directory(args.what)
        found = f"Pushed: {push(directory, args.name, private=args.private)}"
        terminal.conclude(terminal.verdict([found], then=next_command(directory, args.name)))
