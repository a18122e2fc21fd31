"""Turning "this machine goes away now" into a flag that the training loop reads between steps."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

import jax
from jax.experimental import multihost_utils

logger = logging.getLogger(__name__)


class Preemption:
    """While entered, SIGTERM sets a flag instead of ending the process.

        with Preemption() as preemption:
            for step in range(start, steps + 1):
                ...
                if preemption.requested(step):
                    save the checkpoint of this step, wait for it, and exit 0

    A second SIGTERM ends the process at once. Under `jax.distributed`, JAX's own service receives
    the signal and makes all processes see the flag at the same step.

    Raises:
        RuntimeError: entered outside the main thread, where Python allows no signal handlers.
    """

    def __init__(self) -> None:
        self._requested = False
        self._previous: Any = None
        self._is_distributed = False

    def __enter__(self) -> Self:
        self._is_distributed = jax.distributed.is_initialized()
        if self._is_distributed:
            return self
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("Preemption must be entered in the main thread")
        self._previous = signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._is_distributed:
            signal.signal(signal.SIGTERM, self._previous or signal.SIG_DFL)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._requested = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def requested(self, step: int) -> bool:
        """Whether to save after this step and leave. To be called once per step, on every process.

        Args:
            step: the step just finished, equal on all processes.
        """
        if self._is_distributed and multihost_utils.reached_preemption_sync_point(step):
            self._requested = True
        if self._requested:
            logger.warning("SIGTERM received: saving after step %d and leaving", step)
        return self._requested
