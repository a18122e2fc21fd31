"""Locks of directories: two processes that write into one would mix their results.

A lock is a flock on a file, which the kernel drops with its process, however that ends. Local file
systems and NFS (Linux) share it between the processes, and NFS between the machines. Where a file
system has no locks (Lustre without `-o flock`, some FUSE file systems), a warning says so and the
run goes on.
"""

import errno
import fcntl
import json
import logging
import os
import pathlib
import socket
import time
from typing import Any

import jax

from jax_unmask.runtime.files import Closing, has_ended, named, remove_abandoned, require_file
from jax_unmask.settings import ConfigError

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
# A process that was killed holds its lock until its children are gone too.
_PATIENCE_SECONDS = 10.0

logger = logging.getLogger(__name__)


class DirectoryLock(Closing):
    """The right of a run to write into a directory, until `close` or the end of this process.

    Temporary files that processes of this host left there when they were killed are removed.

    Of a run of several processes the first has it; in the others nothing is done.

    Args:
        directory: need not exist.
        name: name of the lock's file in it.
    """

    def __init__(self, directory: str | os.PathLike[str], name: str) -> None:
        self._directory = pathlib.Path(directory)
        self._path = self._directory / name
        self._descriptor: int | None = None

    def check(self) -> None:
        """Takes the lock if its file exists, and makes nothing if not."""
        if self._path.exists():
            self.take()

    def take(self) -> None:
        """Takes the lock, unless this object has it already.

        Raises:
            ConfigError: another process has it; names its host and number.
        """
        if self._descriptor is not None or jax.process_index():
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        require_file(self._path)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno in _NO_LOCKS:
                    message = "%s: this file system has no locks. Start no second run there."
                    logger.warning(message, self._path)
                    break
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    os.close(descriptor)
                    raise
                holder = _holder(descriptor)
                # A holder without a name is about to write it.
                gone = not holder or has_ended(holder.get("host"), holder.get("process"))
                if not gone or time.monotonic() > deadline:
                    os.close(descriptor)
                    raise self._is_taken(holder) from None
            time.sleep(0.1)
        me = {"host": socket.gethostname(), "process": os.getpid()}
        with named(self._path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(me).encode(), 0)
        self._descriptor = descriptor
        # Files that killed processes had not written to their end.
        remove_abandoned((*self._directory.glob(".*"), *self._directory.glob("*/.*")))

    def _is_taken(self, holder: dict[str, Any]) -> ConfigError:
        who = f"process {holder.get('process', '?')} on {holder.get('host', 'another host')}"
        return ConfigError(
            "--workdir",
            str(self._directory),
            f"{who} is writing there",
            "Wait for it, end it, or give another directory",
        )

    def check_held(self) -> None:
        """Raises an OSError if the directory was deleted, moved or replaced meanwhile."""
        if self._descriptor is None:
            return
        try:
            there, mine = os.stat(self._path), os.fstat(self._descriptor)
            same = os.path.samestat(there, mine)
        except FileNotFoundError:
            same = False
        if not same:
            raise FileNotFoundError(
                f"{self._directory} was deleted, moved or replaced while this process was writing "
                f"there ({self._path.name} is not its own any more); nothing later than that is "
                "kept. Start again with another directory"
            )

    def close(self) -> None:
        """Gives the lock back. Its file stays: deleting it could delete the lock of another."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _holder(descriptor: int) -> dict[str, Any]:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}
