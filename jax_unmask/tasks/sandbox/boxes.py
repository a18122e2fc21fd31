"""Command lines of boxes on this machine, and lists of what a box enforces and what not."""

import json
import os
import pathlib
import shutil
import sys
from typing import Any

KINDS = ("bubblewrap", "namespaces")

_INSIDE = "/box/inside"
_SCRATCH = "/scratch"
_SCRATCH_BYTES = 16 * 2**20
_DEVICES = ("null", "random", "urandom")

ENFORCED = (
    "namespaces of its own for processes, mounts, network (no interface is up), shared memory, "
    "host name and users; in the last one nobody is mapped, so no further namespace can be made",
    "no capabilities, no new privileges, and a filter of system calls (x86-64 and arm64) against "
    "sockets, shared memory, ptrace, mounts, namespaces, keys, bpf, io_uring and their like",
    "a read-only file system of /usr, the shared libraries and Python; the only place to write is "
    "an empty scratch directory of 16 MiB that is emptied after every program",
    "an empty environment and no descriptor of the parent",
    "limits on CPU and wall time, address space per process, memory of all processes together "
    "(sampled 20 times per second), processes and threads, file size and open files",
    "output leads nowhere; an answer to the tests may have at most 16 MiB",
    "tests run in a process that never runs the program, cannot be traced or read by it, and "
    "compares plain data only: no answer can claim to equal everything, no program patch the tests",
    "what tests give to the program crosses by value, as the name of a member of the standard "
    "library, or as a reference that can do what a list allows: no frame, module, builtin or "
    "private name is on it",
)
NOT_ENFORCED = (
    "files under /usr and Python's own installation can be read",
    "memory is bounded per process and by sampling, not by a control group: for a twentieth of a "
    "second a box may use its limit of processes times its limit of address space",
    "buffers of pipes that the program opens are in no account: 64 MiB per box at most",
    "bubblewrap bounds the size of the scratch directory, not the number of empty files in it",
    "no CPU quota: a box may use as many cores as it has processes, for as long as it may run",
    "a fault of the kernel itself that the permitted system calls reach",
)


class SandboxUnavailable(OSError):
    """The machine offers no way to make a box; nothing is run without one."""


def choose(kind: str | None = None) -> str:
    """The kind of box to make: the one asked for, else bubblewrap where it is installed.

    Raises:
        SandboxUnavailable: this system has no such kind.
        ValueError: there is no such kind.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"sandbox kind={kind!r} is unknown; choose one of {list(KINDS)}")
    if not sys.platform.startswith("linux"):
        raise SandboxUnavailable(
            f"code can be run on Linux only, this is {sys.platform}; check elsewhere"
        )
    installed = shutil.which("bwrap") is not None
    if kind == "bubblewrap" and not installed:
        raise SandboxUnavailable("bubblewrap is not installed: `apt install bubblewrap`")
    return kind or ("bubblewrap" if installed else "namespaces")


def command(kind: str) -> list[str]:
    """Command line of a box that serves jobs on its standard input and output."""
    view = _view()
    if kind == "bubblewrap":
        return _bubblewrap(view)
    return [*_python(str(pathlib.Path(__file__).parent), "launcher"), json.dumps(view)]


def _view() -> dict[str, Any]:
    """The file system of a box, and the command of its first process."""
    inside = pathlib.Path(__file__).parent / "inside"
    command = _python(os.path.dirname(_INSIDE), "zygote")
    binds, symlinks = [["/usr", "/usr"]], []
    for name in ("/bin", "/lib", "/lib64"):
        if os.path.islink(name):
            symlinks.append([os.readlink(name), name])
        elif os.path.isdir(name):
            binds.append([name, name])
    if os.path.exists("/etc/ld.so.cache"):
        binds.append(["/etc/ld.so.cache", "/etc/ld.so.cache"])
    prefix = os.path.realpath(sys.base_prefix)
    for path in (prefix, command[0]):
        if not any(path == target or path.startswith(target + "/") for _, target in binds):
            binds.append([path, path])
    binds.append([str(inside), _INSIDE])
    return {
        "binds": binds,
        "symlinks": symlinks,
        "scratch": _SCRATCH,
        "scratch_bytes": _SCRATCH_BYTES,
        "command": command,
    }


def _python(folder: str, module: str) -> list[str]:
    """Runs `inside.MODULE.main()` with the standard library alone, outside of any environment."""
    python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    code = f"import sys; sys.path.insert(0, {folder!r}); from inside import {module}; "
    return [python, "-I", "-S", "-B", "-c", code + f"{module}.main()"]


def _bubblewrap(view: dict[str, Any]) -> list[str]:
    arguments = [
        *("bwrap", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"),
        *("--die-with-parent", "--new-session", "--as-pid-1", "--clearenv", "--hostname", "box"),
        *("--setenv", "PATH", "/usr/bin", "--setenv", "LANG", "C.UTF-8"),
    ]
    if os.geteuid() == 0:
        # As root no user namespace: the box's first process changes to the user `nobody` itself.
        arguments += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        arguments.append("--unshare-user")
    places = [target for _, target in view["binds"]]
    # Bubblewrap's own would be for root alone.
    for folder in sorted({str(each) for place in places for each in pathlib.Path(place).parents}):
        if folder != "/":
            arguments += ["--perms", "0755", "--dir", folder]
    for source, target in view["binds"]:
        arguments += ["--ro-bind", source, target]
    arguments += ["--perms", "0755", "--dir", "/dev"]
    for target, place in view["symlinks"]:
        arguments += ["--symlink", target, place]
    for name in _DEVICES:
        arguments += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    scratch = ["--size", str(view["scratch_bytes"]), "--perms", "1777", "--tmpfs", view["scratch"]]
    arguments += ["--proc", "/proc", *scratch, "--remount-ro", "/"]
    return [*arguments, "--", *view["command"]]
