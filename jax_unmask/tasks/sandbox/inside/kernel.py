"""The Linux calls that a box is made of and that Python 3.11 does not offer."""

import ctypes
import os
import platform
import struct

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000

MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MNT_DETACH = 2

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP = 1, 4, 24
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 22, 38
_CAPABILITY_VERSION = 0x20080522
_LAST_CAPABILITY = 63

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, call: str) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{call}: {os.strerror(code)}")


def unshare(flags: int) -> None:
    """Moves this process (for a new pid namespace: its children) into new namespaces."""
    _check(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    """mount(2)."""
    kind_bytes = None if kind is None else kind.encode()
    result = _libc.mount(
        source.encode(), target.encode(), kind_bytes, ctypes.c_ulong(flags), data.encode()
    )
    _check(result, f"mount {target}")


def enter_root(new_root: str) -> None:
    """Makes a mount point the root of this process and unmounts the old root."""
    os.chdir(new_root)
    number = {"x86_64": 155, "aarch64": 41}[platform.machine()]
    _check(_libc.syscall(number, b".", b"."), "pivot_root")
    # The old root is mounted over the new one; detaching it leaves the new one.
    _check(_libc.umount2(b".", MNT_DETACH), "umount /")
    os.chdir("/")


def die_with_parent() -> None:
    """Asks for SIGKILL when the parent ends."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0), "prctl PDEATHSIG")


def hide_memory() -> None:
    """Keeps processes of the same user from reading this one through /proc or ptrace."""
    _check(_libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "prctl DUMPABLE")


def forbid_new_privileges() -> None:
    """Keeps set-user-id programs from giving privileges, for good."""
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl NO_NEW_PRIVS")


def drop_capabilities() -> None:
    """Gives up all capabilities, those that an exec could bring back included."""
    for capability in range(_LAST_CAPABILITY + 1):
        if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) < 0:
            break  # The kernel knows no more of them.
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    _check(_libc.capset(header, bytes(24)), "capset")


# System calls that no test of a program needs: memory that outlives a process or that no limit
# counts, other processes' memory, namespaces and mounts, the kernel's larger interfaces.
_DENIED = {
    "x86_64": {
        "shmget": 29, "shmat": 30, "semget": 64, "msgget": 68, "mq_open": 240,
        "memfd_create": 319, "memfd_secret": 447, "ptrace": 101, "process_vm_readv": 310,
        "process_vm_writev": 311, "pidfd_getfd": 438, "unshare": 272, "setns": 308, "mount": 165,
        "umount2": 166, "pivot_root": 155, "chroot": 161, "open_tree": 428, "move_mount": 429,
        "fsopen": 430, "bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "add_key": 248,
        "request_key": 249, "keyctl": 250, "io_uring_setup": 425, "io_setup": 206, "socket": 41,
        "open_by_handle_at": 304, "name_to_handle_at": 303, "kexec_load": 246, "init_module": 175,
        "finit_module": 313, "fallocate": 285, "sched_setscheduler": 144,
    },
    "aarch64": {
        "shmget": 194, "shmat": 196, "semget": 190, "msgget": 186, "mq_open": 180,
        "memfd_create": 279, "memfd_secret": 447, "ptrace": 117, "process_vm_readv": 270,
        "process_vm_writev": 271, "pidfd_getfd": 438, "unshare": 97, "setns": 268, "mount": 40,
        "umount2": 39, "pivot_root": 41, "chroot": 51, "open_tree": 428, "move_mount": 429,
        "fsopen": 430, "bpf": 280, "perf_event_open": 241, "userfaultfd": 282, "add_key": 217,
        "request_key": 218, "keyctl": 219, "io_uring_setup": 425, "io_setup": 0, "socket": 198,
        "open_by_handle_at": 265, "name_to_handle_at": 264, "kexec_load": 104, "init_module": 105,
        "finit_module": 273, "fallocate": 47, "sched_setscheduler": 119,
    },
}  # fmt: skip
_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT = 0x40000000
_MMAP = {"x86_64": 9, "aarch64": 222}
_FOURTH_ARGUMENT = 40  # Its lower half, in struct seccomp_data.
_SHARED_ANONYMOUS = 0x21  # MAP_SHARED (or MAP_SHARED_VALIDATE) with MAP_ANONYMOUS.


def filter_system_calls() -> bool:
    """Lets the calls of the list above fail with EPERM, for good.

    Returns:
        False where the machine's architecture is not known; nothing is filtered then.
    """
    machine = platform.machine()
    if machine not in _DENIED:
        return False
    load, equal, at_least, both, done = 0x20, 0x15, 0x35, 0x54, 0x06
    allow, deny, kill = 0x7FFF0000, 0x00050001, 0x80000000  # Deny: with errno EPERM.
    steps = [
        (load, 0, 0, 4),  # The architecture of the call.
        (equal, 1, 0, _ARCHITECTURE[machine]),
        (done, 0, 0, kill),
        (load, 0, 0, 0),  # The call's number.
        (at_least, 0, 1, _X32_BIT),  # Calls of the x32 kind, under other numbers.
        (done, 0, 0, kill),
    ]
    # Shared memory without a file would be in no process's account once it is mapped and let go.
    steps += [
        (equal, 0, 4, _MMAP[machine]),
        (load, 0, 0, _FOURTH_ARGUMENT),
        (both, 0, 0, _SHARED_ANONYMOUS),
        (equal, 0, 1, _SHARED_ANONYMOUS),
        (done, 0, 0, deny),
        (load, 0, 0, 0),
    ]
    for number in _DENIED[machine].values():
        steps += [(equal, 0, 1, number), (done, 0, 0, deny)]
    steps.append((done, 0, 0, allow))
    code = b"".join(struct.pack("=HBBI", *step) for step in steps)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(steps), ctypes.addressof(buffer))
    result = _libc.prctl(_PR_SET_SECCOMP, 2, ctypes.c_char_p(program), 0, 0)
    _check(result, "prctl SECCOMP")
    return True
