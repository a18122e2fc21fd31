"""Runs the notebooks and keeps their outputs, made small: `python docs/notebooks/run.py`.

With names (`quickstart`), those alone. Needs the extra `test`.
"""

import argparse
import os
import pathlib
import re
import tempfile
from typing import Any

import nbclient
import nbformat

FOLDER = pathlib.Path(__file__).parent
ROOT = FOLDER.parents[1]
# Lines of libraries about the machine that the notebooks ran on.
_OF_THE_MACHINE = re.compile(
    r"/.*Warning: |  from \.autonotebook |WARNING:absl:|E\d{4} .*slow_operation|\*{32}"
    r"|\[Compiling module|.*step/s\]E\d{4}|Failed to find host bounds|WARNING: Logging before"
    r"|E0000 |=== Source Location|learning/"
)
NAMES = ("quickstart", "own_model", "tracerl")


def execute(
    notebook: Any, folder: pathlib.Path, *, small: bool = False, timeout: int = 1800
) -> Any:
    """Runs a notebook in a folder and returns it with its outputs.

    Args:
        notebook: of `nbformat.read`.
        folder: where its files go.
        small: take the settings of its cell of parameters that are for tests.
        timeout: seconds for a cell.
    """
    for cell in notebook.cells:
        if small and "small" in cell.metadata:
            cell.source = cell.metadata["small"]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    client = nbclient.NotebookClient(
        notebook, timeout=timeout, resources={"metadata": {"path": str(folder)}}
    )
    return client.execute(env={**os.environ, "PYTHONPATH": path})


def tidy(notebook: Any, folder: pathlib.Path) -> Any:
    """The notebook without times, and with lines of progress as they stood at the end."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        kept: list[Any] = []
        for output in cell.get("outputs", ()):
            last = kept[-1] if kept else None
            if output.output_type == "stream" and last and last.get("name") == output.name:
                last.text += output.text
            else:
                kept.append(output)
        for output in kept:
            if output.output_type == "stream":
                lines = [line.rpartition("\r")[2] for line in output.text.split("\n")]
                if output.name == "stderr":
                    lines = [line for line in lines if line and not _OF_THE_MACHINE.match(line)]
                output.text = "\n".join(lines).replace(f"{folder}/", "")
        kept = [output for output in kept if output.get("text") != ""]
        cell.outputs = kept if cell.cell_type == "code" else []
        if cell.cell_type != "code":
            del cell["outputs"]
    return notebook


def main() -> None:
    """Runs the command."""
    described = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    described.add_argument("names", nargs="*", default=NAMES, help=", ".join(NAMES))
    described.add_argument("--small", action="store_true", help="as the tests do; keeps nothing")
    args = described.parse_args()
    for name in args.names:
        file = FOLDER / f"{name}.ipynb"
        with tempfile.TemporaryDirectory() as made:
            notebook = nbformat.read(file, as_version=4)
            done = execute(notebook, pathlib.Path(made), small=args.small)
            if not args.small:
                nbformat.write(tidy(done, pathlib.Path(made)), file)
        print(f"{name}: done")


if __name__ == "__main__":
    main()
