"""Requests in running batches (continuous batching).

One thread drives the device. Requests of one shape (policy, canvas, longest prompt, temperature)
share a batch, a `rollout.continuous.ContinuousRollout`: each takes a row of it, whatever the others
do, with settings of the policy, a seed and a prompt of its own. A row is free again when its
request is done, cancelled or out of time. Batches take turns of a few steps each.
"""

import collections
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import Array, Int

from jax_unmask.policies.base import Policy
from jax_unmask.rollout import RolloutSettings
from jax_unmask.rollout.continuous import ContinuousRollout, Progress
from jax_unmask.rollout.trajectory import check_finite
from jax_unmask.settings import Settings, setting

logger = logging.getLogger(__name__)

DONE, CANCELLED, TIMED_OUT, FAILED = "done", "cancelled", "timed_out", "failed"
_TURN_SECONDS = 0.05
"""Batches take about so long a turn: how often streams get news."""
_MOST_STEPS = 32


class Full(Exception):
    """The queue has no room for another request."""


@dataclasses.dataclass(frozen=True)
class EngineSettings(Settings):
    """Limits of the requests that are served at one time, and of their duration."""

    slots: int = setting(16, "Rows per forward.", ge=1, le=4096)
    queue: int = setting(256, "Requests that wait at most; further ones are refused (429).", ge=0)
    timeout: float = setting(600.0, "Seconds after which a request ends, waiting included.", gt=0)
    batches: int = setting(
        8, "Running batches at most, each of one shape; idle ones make room for others.", ge=1
    )


@dataclasses.dataclass(frozen=True)
class Shape:
    """Properties that all requests of a batch have in common."""

    policy: Policy
    policy_name: str
    settings: RolloutSettings
    prompt_length: int


@dataclasses.dataclass(eq=False)
class CanvasRequest:
    """A request for one canvas.

    Attributes:
        shape: the batch that it belongs to.
        params: the policy's params, with the settings of this request.
        prompt: its tokens.
        seed, turn: of its random numbers.
        notify: called from the engine's thread with (work, place, end): where its row stands, and
            once with the reason of the end.
        is_streamed: whether it is told of every turn, not only of the end.
    """

    shape: Shape
    params: Mapping[str, Any]
    prompt: list[int]
    notify: "Callable[[CanvasRequest, Progress | None, str | None], None]"
    seed: int = 0
    turn: int = 0
    is_streamed: bool = False
    created: float = dataclasses.field(default_factory=time.monotonic)
    started: float | None = None
    error: str = ""
    _end: str | None = None
    _seen: int = 0


@dataclasses.dataclass
class EngineCounts:
    """Counts of the engine's work, for metrics."""

    ended: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    refused: int = 0
    tokens: int = 0
    forwards: int = 0
    seconds: collections.Counter[float] = dataclasses.field(default_factory=collections.Counter)
    seconds_sum: float = 0.0


LATENCIES = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, float("inf"))
"""Upper ends of the classes of latencies."""


class _Batch:
    """A running batch, and the requests in its rows."""

    def __init__(self, make: Callable[[], ContinuousRollout], pool: ThreadPoolExecutor) -> None:
        self.waiting: collections.deque[CanvasRequest] = collections.deque()
        self.owner: dict[int, CanvasRequest] = {}
        self.steps, self.turns = 1, 0
        self._free: list[int] = []
        self._rollout: ContinuousRollout | None = None
        self.making: Future[ContinuousRollout] = pool.submit(make)
        self._pending: tuple[dict[int, CanvasRequest], Array, float] | None = None

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs, waits, or is on its way."""
        return not (self.waiting or self.owner or self._pending) and self.making.done()

    @property
    def is_ready(self) -> bool:
        """Whether its program is compiled."""
        return self.making.done()

    def turn(self, admit: Callable[[CanvasRequest], bool], told: Callable[..., None]) -> None:
        """Lets requests in, starts some steps, and tells of the steps before."""
        if self._rollout is None:
            self._rollout = self.making.result()  # Raises what making it raised.
            self._free = list(range(self._rollout.rows))
        rollout = self._rollout
        while self._free and self.waiting:
            work = self.waiting.popleft()
            if not admit(work):
                continue
            row = self._free.pop()
            own = {name: work.params[name] for name in rollout.settings}
            rollout.put(row, work.prompt, seed=work.seed, turn=work.turn, settings=own)
            self.owner[row] = work
        for row, work in self.owner.items():
            if work._end is not None:
                rollout.stop(row)
        before, self._pending = self._pending, None
        if self.owner:
            # Its steps run while the host tells of those before.
            packed = rollout.advance(self.steps, until_idle=bool(self.waiting))
            self._pending = dict(self.owner), packed, time.monotonic()
        if before is not None:
            self._tell(*before, told)

    def _tell(
        self,
        owner: dict[int, CanvasRequest],
        packed: Array,
        since: float,
        told: Callable[..., None],
    ) -> None:
        assert self._rollout is not None
        places = self._rollout.progress(packed)
        seconds = time.monotonic() - since
        # Nobody looks at the steps of requests that are not streamed, and others wait anyway.
        is_looked_at = not self.waiting or any(work.is_streamed for work in owner.values())
        wanted = _TURN_SECONDS if is_looked_at else 10 * _TURN_SECONDS
        if seconds > 2 * wanted:
            self.steps = max(self.steps // 2, 1)
        elif seconds < wanted:
            self.steps = min(self.steps + 1, _MOST_STEPS)
        for row, work in owner.items():
            if self.owner.get(row) is not work:
                continue  # Was done a turn ago.
            if places[row].is_done:
                del self.owner[row]
                self._free.append(row)
            told(work, places[row])


class Engine:
    """Serves requests until it is closed.

    Args:
        denoiser, denoiser_params: the dLLM.
        shared: for each policy (by name) its params; weights are shared by all requests.
        settings: see there.

    Attributes:
        running: requests that have a row.
    """

    def __init__(
        self,
        denoiser: Any,
        denoiser_params: Any,
        shared: Mapping[str, Any],
        settings: EngineSettings,
    ) -> None:
        self.settings, self.counts = settings, EngineCounts()
        self._model, self._shared = (denoiser, denoiser_params), shared
        self._changed = threading.Condition()
        self._arrived: collections.deque[CanvasRequest] = collections.deque()
        self._parked: list[CanvasRequest] = []
        self._alive: set[CanvasRequest] = set()
        self.running = 0
        self._batches: collections.OrderedDict[Shape, _Batch] = collections.OrderedDict()
        self._makers = ThreadPoolExecutor(1, thread_name_prefix="compile")
        self._first: _Batch | None = None
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests that have no row yet."""
        return len(self._alive) - self.running

    def submit(self, works: list[CanvasRequest]) -> None:
        """Lets requests in, all or none.

        Raises:
            Full: too many wait.
        """
        with self._changed:
            most = self.settings.queue + self.settings.slots
            if self._is_closing or self.waiting + len(works) > most:
                self.counts.refused += len(works)
                raise Full
            self._alive.update(works)
            self._arrived.extend(works)
            self._changed.notify()

    def cancel(self, work: CanvasRequest) -> None:
        """Ends a request, if it has not ended."""
        work._end = work._end or CANCELLED
        with self._changed:
            self._changed.notify()

    @property
    def is_starting(self) -> bool:
        """Whether the first of the shapes to `warm` for is still being compiled."""
        return self._first is not None and not self._first.is_ready

    @property
    def is_compiling(self) -> bool:
        """Whether the program of some shape is still being compiled."""
        return not all(batch.is_ready for batch in self._batches.values())

    def warm(self, shapes: Sequence[Shape]) -> Future[Any]:
        """Begins to compile what shapes need, before any request; gives the first of them."""
        batches = [self._batch(shape) for shape in shapes[: self.settings.batches]]
        self._first = batches[0]
        assert self._first is not None
        return self._first.making

    def end_all(self) -> None:
        """Cancels what waits and runs; nothing is let in any more."""
        with self._changed:
            self._is_closing = True
            for work in self._alive:
                work._end = work._end or CANCELLED
            self._changed.notify()

    def close(self) -> None:
        """Ends everything; what still runs is cancelled."""
        self.end_all()
        self._thread.join()
        self._makers.shutdown(cancel_futures=True)

    def _run(self) -> None:
        while True:
            with self._changed:
                # Waits for news; while a batch compiles or all its requests may be out of time, it
                # looks again from time to time.
                while not (self._arrived or self._is_closing or self._can_go_on()):
                    self._changed.wait(0.02 if self._alive else None)
                if self._is_closing and not self._alive:
                    return
                arrived = list(self._arrived)
                self._arrived.clear()
            self._parked += arrived
            self._end_those_out_of_time()
            self._parked = [work for work in self._parked if not self._place(work)]
            for shape, batch in list(self._batches.items()):
                if batch.is_ready and not batch.is_idle:
                    try:
                        batch.turn(self._admit, self._told)
                    except Exception as error:
                        logger.exception("A batch failed; its requests end.")
                        self._fail(shape, batch, error)

    def _can_go_on(self) -> bool:
        return any(batch.is_ready and not batch.is_idle for batch in self._batches.values())

    def _place(self, work: CanvasRequest) -> bool:
        """Whether there is a batch for a request; otherwise all are busy with other shapes."""
        batch = self._batch(work.shape)
        if batch is not None:
            batch.waiting.append(work)
        return batch is not None

    def _batch(self, shape: Shape) -> _Batch | None:
        """The batch of a shape, if there is one or room for it."""
        batch = self._batches.get(shape)
        if batch is not None:
            self._batches.move_to_end(shape)
            return batch
        if len(self._batches) >= self.settings.batches:
            idle = next((key for key, each in self._batches.items() if each.is_idle), None)
            if idle is None:
                return None
            del self._batches[idle]
        params = self._shared[shape.policy_name]

        def make() -> ContinuousRollout:
            began = time.monotonic()
            made = ContinuousRollout(
                *self._model,
                shape.policy,
                params,
                shape.settings,
                prompt_length=shape.prompt_length,
                slots=self.settings.slots,
                waiting=self.settings.slots,
            )
            made.progress(made.advance(1))
            logger.info(
                "Compiled for policy %s, canvas %d, prompts of up to %d: %.1f s.",
                *(shape.policy_name, shape.settings.gen_length, shape.prompt_length),
                time.monotonic() - began,
            )
            return made

        self._batches[shape] = batch = _Batch(make, self._makers)
        return batch

    def _admit(self, work: CanvasRequest) -> bool:
        """Whether a request that waited still wants a row."""
        if work._end is not None:
            self._finish(work, None, work._end)
            return False
        work.started = time.monotonic()
        self.running += 1
        return True

    def _told(self, work: CanvasRequest, place: Progress) -> None:
        if work not in self._alive:
            return
        self.counts.forwards += place.nfe - work._seen
        work._seen = place.nfe
        if work._end is not None:
            self._finish(work, place, work._end)
        elif place.is_done:
            try:
                check_finite(place.confidence[None], place.step_map[None])
            except FloatingPointError as error:
                work.error = str(error)
                self._finish(work, place, FAILED)
            else:
                self._finish(work, place, DONE)
        elif work.is_streamed:
            work.notify(work, place, None)

    def _finish(self, work: CanvasRequest, place: Progress | None, end: str) -> None:
        self._alive.discard(work)
        self.running -= work.started is not None
        self.counts.ended[end] += 1
        if end == DONE and place is not None:
            self.counts.tokens += int((place.step_map >= 0).sum())
            seconds = time.monotonic() - work.created
            self.counts.seconds_sum += seconds
            self.counts.seconds[next(most for most in LATENCIES if seconds <= most)] += 1
        work.notify(work, place, end)

    def _end_those_out_of_time(self) -> None:
        oldest = time.monotonic() - self.settings.timeout
        for work in tuple(self._alive):
            if work.created < oldest:
                work._end = work._end or TIMED_OUT
        # Those that wait need no row to end.
        waiting = [self._parked, *(batch.waiting for batch in self._batches.values())]
        for works in waiting:
            for work in [work for work in works if work._end is not None]:
                works.remove(work)
                self._finish(work, None, str(work._end))

    def _fail(self, shape: Shape, batch: _Batch, error: Exception) -> None:
        del self._batches[shape]
        for work in (*batch.owner.values(), *batch.waiting):
            if work in self._alive:
                work.error = f"{type(error).__name__}: {error}"
                self._finish(work, None, FAILED)


def text_end(
    tokens: Int[np.ndarray, " L"], stop_ids: tuple[int, ...], most: int
) -> tuple[int, bool]:
    """Number of tokens of a text on a canvas, and whether a token ended it."""
    listed = tokens[:most].tolist()
    stop = next((place for place, token in enumerate(listed) if token in stop_ids), None)
    return (len(listed), False) if stop is None else (stop, True)
