"""Serves a model by the OpenAI protocol: `python -m jax_unmask.serve`."""

import argparse
import asyncio
import contextlib
import dataclasses
import functools
import itertools
import json
import logging
import os
import pathlib
import shlex
import signal
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any

from jax_unmask import policies
from jax_unmask.commands import command_line
from jax_unmask.denoisers.quantization import TYPES
from jax_unmask.denoisers.sampling import Sampling
from jax_unmask.generation import answers
from jax_unmask.generation.decoding import Decoding
from jax_unmask.runtime import compilation, distributed
from jax_unmask.settings import FlagError, SettingError
from jax_unmask.shipped import shipped_models

KEY = "JAX_UNMASK_API_KEY"
_ANSWER_SECONDS = 5
"""After `--drain_seconds`, in which those whose requests did not end are told so."""

logger = logging.getLogger(__name__)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    from jax_unmask.serving.engine import EngineSettings
    from jax_unmask.serving.protocol import RequestLimits

    described = command_line.Parser(
        prog="python -m jax_unmask.serve", description="Serves a model by the OpenAI protocol."
    )
    shipped = ", ".join(shipped_models()) or "none"
    described.add_argument(
        "--model",
        help=f"a shipped model ({shipped}), a Hugging Face or Orbax directory, or a hub name; "
        "default: the one that the (first learned) policy was trained for",
    )
    add = described.add_argument
    add("--host", default="127.0.0.1", help="address to listen on; default: %(default)s")
    add("--port", type=int, default=8000, help="0 for any that is free; default: %(default)s")
    add(
        "--no_key",
        action="store_true",
        help=f"serve other machines without a key (otherwise it is in ${KEY}, and requests have it "
        "as their bearer token)",
    )
    add(
        "--drain_seconds",
        type=int,
        default=60,
        help="after SIGTERM, how long running requests may go on; default: %(default)s",
    )
    add = described.add_argument_group("decoding").add_argument
    add(
        "--policy",
        action="append",
        help="a policy that requests can choose, the first is the default; give it several times "
        f"(names: {', '.join(policies.available())}); default: {answers.UNIVERSAL_POLICY} "
        f"for models that it was trained on, and {policies.DEFAULT}",
    )
    add("--gen_length", type=int, help="longest canvas; default: what the model was made for")
    add(
        "--lengths",
        help="canvas lengths, as in 32,64,128: a request gets the shortest that holds its "
        "max_tokens; default: gen_length alone",
    )
    add("--block_length", type=int, help="block length; default: what the model was made for")
    add("--cache", default=Decoding.cache, help="as of generate; default: %(default)s")
    add(
        "--temperatures",
        default=f"{Decoding.temperature:g}",
        help="that requests may ask for, the default first; default: %(default)s",
    )
    command_line.add_settings(add, Sampling())
    add("--seed", type=command_line.seed, default=0, help="of requests that name none; default: 0")
    add("--dtype", choices=("float32", "bfloat16"), help="of weights and computation")
    add("--quantization", choices=tuple(TYPES), help="one byte per weight of the layers' matrices")
    add("--thinking", choices=("on", "off"), help="for chat templates that know reasoning")
    add = described.add_argument_group("limits").add_argument
    command_line.add_settings(add, EngineSettings(), RequestLimits())
    return described


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    with command_line.parsed(parser(), arguments) as args:
        served = Service(args)
        try:
            served.run()
            if served.engine.is_compiling:  # A compiler cannot be stopped, and nobody needs it now.
                logging.shutdown()
                os._exit(0)
        finally:
            served.engine.close()


def require() -> Any:
    """uvicorn; an ImportError that says how to install it."""
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise ImportError("serving needs the extra: pip install 'jax_unmask[serve]'") from error
    return uvicorn


class Service:
    """A loaded model, its engine and its server.

    Raises:
        ValueError: the arguments do not fit each other (before anything is loaded), or the model.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        uvicorn = require()
        from jax_unmask.serving.app import App
        from jax_unmask.serving.engine import Engine, EngineSettings
        from jax_unmask.serving.protocol import Model, RequestLimits

        engine_settings = command_line.given(EngineSettings, args)
        limits = command_line.given(RequestLimits, args)
        is_loopback, key = distributed.is_loopback(args.host), os.environ.get(KEY) or None
        if not (is_loopback or key or args.no_key):
            raise FlagError(
                "host",
                args.host,
                "other machines could send requests",
                f"Set a key in the environment variable {KEY}, or give --no_key",
            )
        if args.drain_seconds < 0:
            raise FlagError("drain_seconds", args.drain_seconds, "it is no time", "Give 0 or more")
        _check_port(args)
        lengths, temperatures = (
            command_line.numbers(args, "lengths", int),
            command_line.numbers(args, "temperatures", float),
        )
        if lengths and args.gen_length is None:
            args.gen_length = max(lengths)
        named = list(dict.fromkeys(args.policy or ()))
        learned = next((each for each in named if answers.trained_for(each)), None)
        first = learned or next(iter(named), None)
        how = _decoding(args, temperatures[0], None)
        with _naming_lists(args):
            args.model, first, how = answers.fitted(args.model, first, how)
        named = named or list(filter(None, (first, policies.DEFAULT)))
        known = answers.read(args.model)
        if known is None:
            problem = "it is a diffusion_gemma, and the server fills canvases of masks"
            remedy = "Serve a masked model, or ask this one with python -m jax_unmask.generate"
            raise FlagError("model", args.model, problem, remedy)
        args.gen_length, args.block_length = how.gen_length, how.block_length
        is_full = how.block_length == how.gen_length
        for length, temperature in itertools.product(lengths or [None], temperatures):
            asked = _decoding(args, temperature, length)
            if is_full and length is not None:  # The block of full diffusion is the canvas.
                asked = dataclasses.replace(asked, block_length=length)
            with _naming_lists(args):
                for policy in named:
                    answers.check(args.model, policy, asked, known)
        logger.info("Loading %s ...", args.model)
        writer = answers.load(args.model, named[0], _decoding(args, temperatures[0], None))
        assert isinstance(writer, answers.MaskedWriter)
        self.model = Model(
            pathlib.Path(args.model).name if pathlib.Path(args.model).is_dir() else args.model,
            writer,
            named,
            lengths or [writer.settings.gen_length],
            temperatures,
            limits,
            args.seed,
        )
        self.engine = Engine(writer.denoiser, writer.params, self.model.shared, engine_settings)
        self.app = App(self.model, self.engine, key=key, is_loopback=is_loopback)
        config = uvicorn.Config(
            self.app.asgi,
            host=args.host,
            port=args.port,
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            timeout_graceful_shutdown=args.drain_seconds + _ANSWER_SECONDS,
            server_header=False,
        )
        drain = functools.partial(self._end_in, args.drain_seconds)
        self._server = _server(uvicorn, config, self._started, drain)
        self._args, self._has_key = args, key is not None
        self._is_run = False
        self._failed: Exception | None = None

    def run(self) -> None:
        """Serves until a signal; then finishes what runs."""
        self._is_run = True
        self._server.run()
        if self._failed is not None:
            raise self._failed
        logger.info("%s", said(dict(self.engine.counts.ended)))
        if not self._server.started:
            raise OSError(f"--port={self._args.port}: cannot listen on {self._args.host}")

    def _started(self, port: int) -> None:
        """Compiles what requests will need first; those that come before wait."""
        self._say(port)
        if self._is_run:
            compiled = self.engine.warm(self.model.first_shapes())
            threading.Thread(target=self._wait_for, args=(compiled,), daemon=True).start()

    def _wait_for(self, compiled: Future[Any]) -> None:
        try:
            with compilation.announced(f"the rollouts of {self.model.name}"):
                compiled.result()
            logger.info("Ready.")
        except CancelledError:
            pass  # The server ended before.
        except Exception as error:
            self._failed, self._server.should_exit = error, True

    def _end_in(self, seconds: int) -> None:
        """Tells those whose requests still run after so long that the server shuts down."""
        asyncio.get_running_loop().call_later(seconds, self.engine.end_all)

    def _say(self, port: int) -> None:
        host = f"[{self._args.host}]" if ":" in self._args.host else self._args.host
        logger.info(
            "Serving %s at http://%s:%d (page), http://%s:%d/v1 (OpenAI protocol). Try it:\n"
            "  curl http://%s:%d/v1/completions -H 'Content-Type: application/json' %s-d %s",
            *(self.model.name, host, port, host, port, host, port),
            f'-H "Authorization: Bearer ${KEY}" ' if self._has_key else "",
            shlex.quote(json.dumps({"prompt": self.model.example or "..."})),
        )


def said(ended: Mapping[str, int]) -> str:
    """The number of answers, and the ends of those that are not whole, as text."""
    others = [f"{number} {end.replace('_', ' ')}" for end, number in ended.items() if end != "done"]
    whole = ended.get("done", 0)
    return ", ".join([f"Gave {whole} answer{'' if whole == 1 else 's'}", *others]) + "."


def _server(uvicorn: Any, config: Any, say: Any, drain: Any) -> Any:
    """A server that says where it listens, and ends with status 0 after a signal."""

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if self.started:
                say(self.servers[0].sockets[0].getsockname()[1])

        async def shutdown(self, sockets: Any = None) -> None:
            drain()
            await super().shutdown(sockets)

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            numbers = (signal.SIGINT, signal.SIGTERM)
            before = {number: signal.signal(number, self.handle_exit) for number in numbers}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

    return Server(config)


@contextlib.contextmanager
def _naming_lists(args: argparse.Namespace) -> Iterator[None]:
    """Names the arguments in mistakes of one of their values."""
    plural = {"temperature": "temperatures"} | ({"gen_length": "lengths"} if args.lengths else {})
    try:
        yield
    except SettingError as error:
        if error.key not in plural:
            raise
        key, problem = plural[error.key], f"with {error.value!r} {error.problem}"
        raise FlagError(key, getattr(args, key), problem, error.remedy) from error


def _decoding(args: argparse.Namespace, temperature: float, length: int | None) -> Decoding:
    names = ("block_length", "cache", "top_k", "top_p", "dtype", "quantization")
    return Decoding(
        gen_length=args.gen_length if length is None else length,
        temperature=temperature,
        thinking=None if args.thinking is None else args.thinking == "on",
        **{name: getattr(args, name) for name in names},
    )


def _check_port(args: argparse.Namespace) -> None:
    """Whether one can listen there, before anything is loaded."""
    family = socket.AF_INET6 if ":" in args.host else socket.AF_INET
    try:
        socket.create_server((args.host, args.port), family=family).close()
    except (OSError, OverflowError) as error:
        problem = f"cannot listen on {args.host}: {error}"
        raise FlagError(
            "port", args.port, problem, "Give another, or 0 for any that is free"
        ) from error
