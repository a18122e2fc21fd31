"""Makes a box by system calls, where bubblewrap is not installed.

Namespaces for mounts, processes, network, host name and shared memory; a new root file system that
holds what the view lists, read-only, an empty scratch directory, three devices and `/proc`. Works
as root, and as any user where the kernel lets users make namespaces.
"""

import ctypes
import json
import os
import socket
import struct
import sys

from . import kernel

_NEW_ROOT = "/tmp"
_DEVICES = ("null", "random", "urandom")
_MOUNT_SETATTR = 442
_AT_RECURSIVE = 0x8000
_READ_ONLY, _NO_SUID, _NO_DEV = 1, 2, 4


def main() -> None:
    """Reads a view (JSON) from the first argument and runs its command in a box."""
    view = json.loads(sys.argv[1])
    namespaces = kernel.CLONE_NEWNS | kernel.CLONE_NEWPID | kernel.CLONE_NEWNET
    namespaces |= kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
    uid, gid = os.geteuid(), os.getegid()
    if uid:
        kernel.unshare(namespaces | kernel.CLONE_NEWUSER)
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{uid} {uid} 1")
        _write("/proc/self/gid_map", f"{gid} {gid} 1")
    else:
        kernel.unshare(namespaces)
    child = os.fork()
    if child == 0:
        kernel.die_with_parent()
        socket.sethostname("box")
        _make_root(view)
        command = view["command"]
        os.execve(command[0], command, {"PATH": "/usr/bin", "LANG": "C.UTF-8"})
    # The box has its end of the pipes; this process must not keep them open.
    os.closerange(0, 3)
    _, status = os.waitpid(child, 0)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _make_root(view: dict[str, list[list[str]]]) -> None:
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    binds = [*view["binds"], *([f"/dev/{name}", f"/dev/{name}"] for name in _DEVICES)]
    # Opened now: the new root may come to lie over them.
    opened = [(os.open(source, os.O_PATH), target) for source, target in binds]
    kernel.mount("tmpfs", _NEW_ROOT, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=755")
    for descriptor, target in opened:
        source, place = f"/proc/self/fd/{descriptor}", _NEW_ROOT + target
        is_directory = os.path.isdir(source)
        os.makedirs(place if is_directory else os.path.dirname(place), 0o755, exist_ok=True)
        if not is_directory:
            os.close(os.open(place, os.O_CREAT | os.O_WRONLY, 0o600))
        kernel.mount(source, place, None, kernel.MS_BIND | kernel.MS_REC)
        device = 0 if target.startswith("/dev/") else _NO_DEV
        _set_attributes(place, _READ_ONLY | _NO_SUID | device)
        os.close(descriptor)
    for target, place in view["symlinks"]:
        os.symlink(target, _NEW_ROOT + place)
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    os.makedirs(_NEW_ROOT + "/proc")
    kernel.mount("proc", _NEW_ROOT + "/proc", "proc", flags)
    scratch = f"{_NEW_ROOT}{view['scratch']}"
    os.makedirs(scratch)
    size = f"size={view['scratch_bytes']},nr_inodes=1k,mode=1777"
    kernel.mount("tmpfs", scratch, "tmpfs", flags, size)
    _set_attributes(_NEW_ROOT, _READ_ONLY, recursive=False)
    kernel.enter_root(_NEW_ROOT)


def _set_attributes(place: str, attributes: int, *, recursive: bool = True) -> None:
    """mount_setattr(2): unlike a remount it reaches the mounts below, too."""
    libc = ctypes.CDLL(None, use_errno=True)
    change = struct.pack("=QQQQ", attributes, 0, 0, 0)
    flags = _AT_RECURSIVE if recursive else 0
    if libc.syscall(_MOUNT_SETATTR, -100, place.encode(), flags, change, len(change)) < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"mount_setattr {place}: {os.strerror(code)}")


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
