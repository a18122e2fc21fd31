"""Signals that end a process, as a flag that the training loop reads: preemption and Ctrl-C."""

import logging
import os
import signal
import socket
import threading
from types import FrameType, TracebackType
from typing import Any, Self

import jax
from jax.experimental import multihost_utils

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
OUT_OF_TIME = 128 + signal.SIGTERM
"""Status of a process that could not save within its grace period; what a shell reports for one
that SIGTERM ended."""

logger = logging.getLogger(__name__)


class Preemption:
    """A context in which SIGTERM and SIGINT (Ctrl-C) set a flag and do not end the process.

        with Preemption() as preemption:
            for step in range(start, steps + 1):
                ...
                if preemption.requested(step):
                    save the checkpoint of this step, wait for it, and exit 0

    A second signal ends the process at once. Under `jax.distributed`, JAX's own service receives
    SIGTERM and makes all processes see the flag at the same step; SIGINT is left alone.

    Python handles a signal only when the interpreter runs, after the device has finished a step. A
    thread that the operating system wakes at once measures the time meanwhile.

    Args:
        grace_seconds: time from the signal to the end of the `with` block, after which the process
            ends with status `OUT_OF_TIME`, whatever it is doing; a checkpoint that was being saved
            is lost, and the one before it stays. 0 waits as long as it takes. Under
            `jax.distributed` there is no limit, and Ctrl-C has none.

    Attributes:
        signal: the signal that came, or None.

    Raises:
        RuntimeError: entered outside the main thread, where Python allows no signal handlers.
    """

    def __init__(self, grace_seconds: float = 0.0) -> None:
        self._grace_seconds = grace_seconds
        self._requested = False
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}
        self._is_distributed = False
        self._left = threading.Event()

    def __enter__(self) -> Self:
        self._is_distributed = jax.distributed.is_initialized()
        if self._is_distributed:
            return self
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("Preemption must be entered in the main thread")
        self._previous = {each: signal.signal(each, self._on_signal) for each in _SIGNALS}
        self._receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)
        self._previous_fd = signal.set_wakeup_fd(self._sender.fileno())
        self._keeper = threading.Thread(target=self._keep_time, name="grace period", daemon=True)
        self._keeper.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_distributed:
            return
        self._left.set()
        for number, previous in self._previous.items():
            signal.signal(number, previous or signal.SIG_DFL)
        signal.set_wakeup_fd(self._previous_fd)
        self._sender.close()  # Ends the thread, if no signal did.
        self._keeper.join()
        self._receiver.close()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._requested, self.signal = True, number
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)

    def _keep_time(self) -> None:
        """Runs in a thread; gets one byte for each signal that reaches the process."""
        while received := self._receiver.recv(1):
            if received[0] in _SIGNALS:
                break
        else:
            return
        if received[0] == signal.SIGINT:
            logger.warning("Finishing the step under way and saving it; Ctrl-C again stops at once")
        # Python's handler, which would let a second one through, may wait for the device.
        patience = self._grace_seconds if received[0] == signal.SIGTERM else 0.0
        if patience <= 0:
            while received := self._receiver.recv(1):
                if received[0] in _SIGNALS:
                    os._exit(128 + received[0])
            return
        logger.warning(
            "SIGTERM received: %.0f s to finish the step under way and to save it",
            self._grace_seconds,
        )
        if not self._left.wait(self._grace_seconds):
            logger.error(
                "The step under way was not saved within the grace period of %.0f s "
                "(checkpoint.grace_seconds). Leaving; the next start goes on from the last "
                "checkpoint. A smaller checkpoint.every loses less.",
                self._grace_seconds,
            )
            os._exit(OUT_OF_TIME)

    def requested(self, step: int) -> bool:
        """Whether to save after this step and leave. To be called once per step, on every process.

        Args:
            step: the step just finished, equal on all processes.
        """
        if self._is_distributed and multihost_utils.reached_preemption_sync_point(step):
            self._requested = True
        if self._requested:
            name = "SIGTERM" if self.signal is None else signal.Signals(self.signal).name
            logger.warning("%s received: saving after step %d and leaving", name, step)
        return self._requested
