"""The server's addresses: the OpenAI protocol, metrics, and the page."""

import asyncio
import contextlib
import hmac
import importlib.resources
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from jax_unmask.rollout.continuous import Progress
from jax_unmask.serving import engine as engines
from jax_unmask.serving import protocol
from jax_unmask.serving.engine import LATENCIES, CanvasRequest, Engine, Full
from jax_unmask.serving.protocol import Asked, BadRequest, Choice, Model

_WEB = importlib.resources.files("jax_unmask.serving") / "web"
_FILES = {"page.html": "text/html", "page.js": "text/javascript", "page.css": "text/css"}
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_BODY_SECONDS = 60
"""Within so long the body of a request must have come."""
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_RETRY = {"Retry-After": "1"}
_STATUS = {engines.TIMED_OUT: 504, engines.FAILED: 500, engines.CANCELLED: 503}
_MESSAGE = {
    engines.TIMED_OUT: "the request took longer than this server allows (--timeout)",
    engines.CANCELLED: "the server is shutting down",
}


class _Run:
    """The canvases of a request in the engine, as an asynchronous stream of what they report."""

    def __init__(self, engine: Engine, asked: Asked) -> None:
        self._engine, self._loop = engine, asyncio.get_running_loop()
        # The latest of each canvas: a client that reads slowly misses steps, and fills no memory.
        self._news: dict[int, tuple[Progress | None, str | None]] = {}
        self._has_news = asyncio.Event()
        numbers = range(len(asked.prompts) * asked.choices)
        self.works = [
            CanvasRequest(
                asked.shape,
                asked.params,
                asked.prompts[number // asked.choices],
                self._notify,
                seed=asked.seed,
                turn=number % asked.choices,
                is_streamed=asked.is_streamed,
            )
            for number in numbers
        ]
        self._number = {work: number for number, work in enumerate(self.works)}
        engine.submit(self.works)

    async def news(self) -> tuple[int, Progress | None, str | None]:
        """The next report: which canvas, where it stands, and the reason if it ended."""
        await self._has_news.wait()
        number = next(iter(self._news))
        place, end = self._news.pop(number)
        if not self._news:
            self._has_news.clear()
        return number, place, end

    def cancel(self) -> None:
        """Ends all canvases that have not ended."""
        for work in self.works:
            self._engine.cancel(work)

    def _notify(self, work: CanvasRequest, place: Progress | None, end: str | None) -> None:
        item = self._number[work], (place, end)
        with contextlib.suppress(RuntimeError):  # The loop is closed: nobody listens any more.
            self._loop.call_soon_threadsafe(self._add, *item)

    def _add(self, number: int, news: tuple[Progress | None, str | None]) -> None:
        self._news[number] = news
        self._has_news.set()


class App:
    """The application of a model and its engine; `asgi` is what a server runs."""

    def __init__(
        self, model: Model, engine: Engine, *, key: str | None = None, is_loopback: bool = True
    ) -> None:
        self._model, self._engine, self._key = model, engine, key
        middleware = []
        if is_loopback:
            middleware = [Middleware(_OwnHost)]
        self.asgi = Starlette(
            routes=[
                Route("/", self._file("page.html")),
                *(Route(f"/{name}", self._file(name)) for name in _FILES),
                Route("/favicon.ico", self._nothing),
                Route("/about", self._about),
                Route("/health", self._health),
                Route("/metrics", self._metrics),
                Route("/v1/models", self._models),
                Route("/v1/models/{id:path}", self._one_model),
                Route("/v1/completions", self._complete(is_chat=False), methods=["POST"]),
                Route("/v1/chat/completions", self._complete(is_chat=True), methods=["POST"]),
            ],
            middleware=middleware,
            exception_handlers={
                BadRequest: _refuse,
                Full: _busy,
                ClientDisconnect: _gone,
                HTTPException: _no_address,
                Exception: _failed,
            },
        )

    def _file(self, name: str) -> Callable[[Request], Any]:
        content = (_WEB / name).read_text(encoding="utf-8")

        async def serve(request: Request) -> Response:
            return Response(content, media_type=_FILES[name], headers=_PAGE_HEADERS)

        return serve

    async def _about(self, request: Request) -> Response:
        return JSONResponse({**self._model.described(), "needs_key": self._key is not None})

    async def _nothing(self, request: Request) -> Response:
        return Response(status_code=204)

    async def _health(self, request: Request) -> Response:
        if self._engine.is_starting:  # Requests wait; who shares out load asks others first.
            return JSONResponse({"status": "starting"}, status_code=503, headers=_RETRY)
        return JSONResponse({"status": "ok"})

    async def _models(self, request: Request) -> Response:
        self._check_key(request)
        return JSONResponse({"object": "list", "data": self._model.listed()})

    async def _one_model(self, request: Request) -> Response:
        self._check_key(request)
        for each in self._model.listed():
            if each["id"] == request.path_params["id"]:
                return JSONResponse(each)
        raise BadRequest("there is no such model", status=404, code="model_not_found")

    async def _metrics(self, request: Request) -> Response:
        self._check_key(request)
        return PlainTextResponse(metrics(self._engine), media_type="text/plain; version=0.0.4")

    def _complete(self, *, is_chat: bool) -> Callable[[Request], Any]:
        async def serve(request: Request) -> Response:
            self._check_key(request)
            body = await self._body(request)
            asked = self._model.understand(body, is_chat=is_chat)
            run = _Run(self._engine, asked)
            if asked.is_streamed:
                return StreamingResponse(
                    self._stream(asked, run),
                    media_type="text/event-stream",
                    headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
                )
            return await self._whole(request, asked, run)

        return serve

    async def _whole(self, request: Request, asked: Asked, run: _Run) -> Response:
        """The answer once it is done; the request ends if the client leaves."""
        leaving = asyncio.ensure_future(_cancel_if_left(request, run))
        choices: dict[int, Choice] = {}
        try:
            while len(choices) < len(run.works):
                number, place, end = await run.news()
                if end == engines.DONE and place is not None:
                    choices[number] = self._finished(asked, run.works[number], place)
                elif end is not None:
                    error = run.works[number].error or _MESSAGE.get(end, end)
                    raise BadRequest(error, status=_STATUS[end])
        finally:
            leaving.cancel()
            run.cancel()
        return JSONResponse(protocol.response(asked, [choices[k] for k in range(len(choices))]))

    async def _stream(self, asked: Asked, run: _Run) -> AsyncIterator[bytes]:
        """The pieces of the answer as events."""
        tokenizer = self._model.writer.tokenizer
        texts = [protocol.Text(tokenizer, asked) for _ in run.works]
        choices: dict[int, Choice] = {}
        try:
            if asked.is_chat:
                for number in range(len(run.works)):
                    begin = protocol.chunk(asked, number, "")
                    begin["choices"][0]["delta"] = {"role": "assistant", "content": ""}
                    yield _event(begin)
            while len(choices) < len(run.works):
                number, place, end = await run.news()
                more: dict[str, Any] = {}
                if asked.with_canvas and place is not None:
                    more["canvas"] = protocol.canvas(tokenizer, place, asked.most)
                if end is None and place is not None:
                    delta = texts[number].delta(place)
                    if delta or more:
                        yield _event(protocol.chunk(asked, number, delta, **more))
                elif end == engines.DONE and place is not None:
                    choice = self._finished(asked, run.works[number], place)
                    choices[number] = choice
                    rest = texts[number].last(choice.text)
                    if rest or more:
                        yield _event(protocol.chunk(asked, number, rest, **more))
                    told = protocol.unmasking(asked, [choice])
                    last = protocol.chunk(asked, number, "", choice.finish_reason, unmasking=told)
                    yield _event(last)
                else:
                    error = run.works[number].error or _MESSAGE.get(str(end), str(end))
                    yield _event(BadRequest(error, status=_STATUS.get(str(end), 500)).body())
                    return
            if asked.with_usage:
                yield _event(protocol.last_chunk(asked, list(choices.values())))
            yield b"data: [DONE]\n\n"
        finally:
            run.cancel()

    def _finished(self, asked: Asked, work: CanvasRequest, place: Progress) -> Choice:
        seconds = time.monotonic() - (work.started or work.created)
        return protocol.finished(self._model.writer.tokenizer, asked, place, seconds)

    async def _body(self, request: Request) -> Any:
        """The JSON of a request, which is no larger than allowed."""
        if not request.headers.get("content-type", "").lower().startswith("application/json"):
            # A browser asks before it sends this type to another site.
            raise BadRequest("the content type must be application/json", status=415)
        most, parts, size = self._model.limits.max_body, [], 0
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                async for part in request.stream():
                    size += len(part)
                    if size > most:
                        raise BadRequest(f"the body has more than {most} bytes", status=413)
                    parts.append(part)
        except TimeoutError:
            message = f"the body did not come within {_BODY_SECONDS} s"
            raise BadRequest(message, status=408) from None
        try:
            return json.loads(b"".join(parts), parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"the body is no JSON: {error}") from error

    def _check_key(self, request: Request) -> None:
        if self._key is None:
            return
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), self._key.encode()):
            raise BadRequest(
                "the API key is missing or wrong (Authorization: Bearer KEY)",
                status=401,
                code="invalid_api_key",
            )


def metrics(engine: Engine) -> str:
    """Counters and gauges in the text format of Prometheus."""
    counts, lines = engine.counts, []

    def add(name: str, kind: str, help_text: str, *samples: tuple[str, float]) -> None:
        lines.append(f"# HELP jax_unmask_{name} {help_text}")
        lines.append(f"# TYPE jax_unmask_{name} {kind}")
        lines.extend(f"jax_unmask_{name}{labels} {value:g}" for labels, value in samples)

    ends = (engines.DONE, engines.CANCELLED, engines.TIMED_OUT, engines.FAILED)
    ended = [(f'{{end="{end}"}}', counts.ended[end]) for end in ends]
    add("requests_total", "counter", "Canvases that ended, by reason.", *ended)
    add(
        "refused_total",
        "counter",
        "Canvases refused because the queue was full.",
        ("", counts.refused),
    )
    add("running", "gauge", "Canvases in rows of running batches.", ("", engine.running))
    add("waiting", "gauge", "Canvases that wait for a row.", ("", engine.waiting))
    add("tokens_total", "counter", "Positions filled in finished canvases.", ("", counts.tokens))
    add("forwards_total", "counter", "Forwards that rows needed.", ("", counts.forwards))
    classes, total = [], 0.0
    for most in LATENCIES:
        total += counts.seconds[most]
        name = "+Inf" if most == float("inf") else f"{most:g}"
        classes.append((f'_bucket{{le="{name}"}}', total))
    classes += [("_sum", counts.seconds_sum), ("_count", total)]
    add("seconds", "histogram", "Seconds from request to end of finished canvases.", *classes)
    return "\n".join(lines) + "\n"


async def _cancel_if_left(request: Request, run: _Run) -> None:
    """Ends a request when its client has gone; nobody reads the answer then."""
    with contextlib.suppress(ClientDisconnect):
        while (await request.receive())["type"] != "http.disconnect":
            pass
    run.cancel()


class _OwnHost:
    """Answers requests to this machine alone.

    Pages of other sites can make a browser send requests here, under names of their own.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            host = Headers(scope=scope).get("host")  # Browsers give one; HTTP/1.0 has none.
            if host is not None and re.sub(r":\d+$", "", host).lower() not in _LOOPBACK:
                names = ", ".join(_LOOPBACK)
                wrong = BadRequest(f"the Host {host!r:.80} is not this server: {names}")
                response = JSONResponse(wrong.body(), status_code=wrong.status)
                return await response(scope, receive, send)
        await self._app(scope, receive, send)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


async def _no_address(request: Request, error: Exception) -> Response:
    """404 for an unknown address, 405 for a wrong method."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path!r:.200}: {error.detail}"
    body = BadRequest(message, status=error.status_code).body()
    return JSONResponse(body, status_code=error.status_code, headers=error.headers)


async def _gone(request: Request, error: Exception) -> Response:
    """The client left before its request was read; nobody reads the answer."""
    return Response(status_code=499)


async def _failed(request: Request, error: Exception) -> Response:
    """An error of this server; starlette raises it again, for the log."""
    body = BadRequest("the server failed; its log says how", status=500).body()
    return JSONResponse(body, status_code=500)


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, BadRequest)
    return JSONResponse(error.body(), status_code=error.status)


async def _busy(request: Request, error: Exception) -> Response:
    full = BadRequest("as many requests wait as may; try again", status=429, code="queue_full")
    body = full.body()
    body["error"]["type"] = "rate_limit_error"
    return JSONResponse(body, status_code=429, headers=_RETRY)


def _event(data: Any) -> bytes:
    return f"data: {json.dumps(data, ensure_ascii=True, separators=(',', ':'))}\n\n".encode()
