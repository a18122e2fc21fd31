"""A server under load beside one rollout of the same requests, at equal slots.

    python docs/benchmarks/serving.py --model=countdown --requests=200 --slots=16

Sends all requests at one time, each with a canvas, a prompt, a threshold and a seed of its own.
Some clients leave early. Every other request must be answered, with the text that a rollout gives
it. The rollout has the requests of the clients that stay; rates of tokens are compared, rollout and
server by turns.
"""

import argparse
import asyncio
import dataclasses
import json
import multiprocessing
import random
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_unmask import denoisers, policies, tasks
from jax_unmask.commands import serve
from jax_unmask.policies import PerRow
from jax_unmask.rollout import rollout
from jax_unmask.rollout.continuous import answer_keys
from jax_unmask.runtime import compilation

POLICY = "threshold:threshold=0.9"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="countdown", help="a shipped model")
    parser.add_argument("--lengths", help="canvases; default: the model's own")
    parser.add_argument(
        "--wider", type=int, default=1, help="so many times as wide, with random weights"
    )
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--cancelled", type=int, default=20)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    compilation.enable_cache()
    lengths = [] if args.lengths is None else [f"--lengths={args.lengths}"]
    with tempfile.TemporaryDirectory() as directory:
        model = args.model if args.wider == 1 else _widened(args.model, args.wider, directory)
        service = _service(args, model, lengths)
    task, random_ = tasks.parse(args.model), random.Random(0)
    source = task.source("test")
    requests = [
        {
            "model": service.model.name,
            "prompt": task.prompt(source[number]),
            "max_tokens": random_.choice(service.model.lengths),
            "threshold": round(random_.uniform(0.5, 0.99), 3),
            "seed": number,
        }
        for number in range(args.requests)
    ]
    leaving = set(random_.sample(range(args.requests), args.cancelled))
    with asyncio.Runner(loop_factory=service._server.config.get_loop_factory()) as runner:
        rounds = runner.run(_rounds(service, requests, leaving, args))
    service.engine.close()
    staying = set(range(args.requests)) - leaving
    tokens = [request["max_tokens"] for request in requests]
    rolled_out = sum(tokens[k] for k in staying)
    ratios, cores, more = [], [], []
    print(f"{args.requests} requests, {args.cancelled} of them cancelled, {args.slots} slots")
    for (seconds, cpu, texts), (seconds_served, cpu_served, found) in rounds:
        assert found.keys() == staying, found.keys() ^ staying
        assert found == texts, [(found[k], texts[k]) for k in staying if found[k] != texts[k]]
        rate, rate_served = rolled_out / seconds, rolled_out / seconds_served
        ratios.append(rate_served / rate)
        cores.append(cpu / cpu_served)
        more.append(1e3 * (cpu_served - cpu) / len(staying))
        print(
            f"rollout {rate:.0f}, server {rate_served:.0f} tokens/s: {ratios[-1]:.2f}; per second "
            f"of the server's processors {cores[-1]:.2f}"
        )
    print(f"server / rollout: {_spread(ratios)}")
    # Where other programs share the machine, seconds of its processors say more than those of a
    # clock; clients have a process of their own.
    print(f"the same per processor second: {_spread(cores)}")
    print(f"processor milliseconds of a request beside the rollout's: {_spread(more)}")
    print(f"ended: {dict(service.engine.counts.ended)}")


def _service(args: argparse.Namespace, model: str, lengths: list[str]) -> serve.Service:
    return serve.Service(
        serve.parser().parse_args(
            [
                *(f"--model={model}", f"--policy={POLICY}", "--port=0", "--queue=10000"),
                *(f"--slots={args.slots}", "--block_length=8", *lengths),
            ]
        )
    )


def _widened(name: str, factor: int, directory: str) -> str:
    """The directory of a model like a shipped one, with random weights."""
    config, key = denoisers.from_pretrained(name)[0].config, jax.random.key(0)
    names = ("hidden_size", "intermediate_size", "num_heads", "num_kv_heads")
    config = dataclasses.replace(config, **{each: factor * getattr(config, each) for each in names})
    leaves, tree = jax.tree.flatten(denoisers.abstract_params(config))
    params = tree.unflatten(
        jax.random.normal(each, leaf.shape, leaf.dtype) * leaf.shape[-1] ** -0.5
        for each, leaf in zip(jax.random.split(key, len(leaves)), leaves, strict=True)
    )
    print(f"{sum(leaf.size for leaf in leaves):,} parameters")
    tokenizer = denoisers.load_tokenizer(name)
    denoisers.save_pretrained(directory, denoisers.Denoiser(config), params, tokenizer)
    return directory


def _spread(values: list[float]) -> str:
    return f"median {np.median(values):.2f}, {min(values):.2f} to {max(values):.2f}"


def _alone(
    service: Any, requests: list[dict[str, Any]], staying: set[int], slots: int
) -> tuple[float, float, dict[int, str]]:
    """Seconds (of a clock, of processors) and texts of one rollout per canvas length."""
    model = service.model
    texts: dict[int, str] = {}
    writer, seconds, cpu = model.writer, 0.0, 0.0
    policy, _ = policies.parse_policy(POLICY)
    for length in model.lengths:
        members = [k for k in sorted(staying) if requests[k]["max_tokens"] == length]
        asked = [model.understand(requests[k], is_chat=False) for k in members]
        shape = max((each.shape for each in asked), key=lambda shape: shape.prompt_length)
        prompts = writer.tokenizer.pad_prompts(
            [each.prompts[0] for each in asked], shape.prompt_length
        )
        seeds = np.asarray([requests[k]["seed"] for k in members], np.uint32)
        thresholds = jnp.asarray([requests[k]["threshold"] for k in members], jnp.float32)
        settings = dataclasses.replace(shape.settings, slots=slots)
        began, busy = time.perf_counter(), time.process_time()
        out = rollout(
            *(writer.denoiser, writer.params, policy, {"threshold": PerRow(thresholds)}, prompts),
            answer_keys(seeds, np.zeros(len(members), np.int32)),
            settings,
        )
        tokens = np.asarray(jax.device_get(out.tokens))
        seconds += time.perf_counter() - began
        cpu += time.process_time() - busy
        texts |= dict(zip(members, writer.tokenizer.decode_batch(tokens), strict=True))
    return seconds, cpu, texts


async def _rounds(
    service: Any, requests: list[dict[str, Any]], leaving: set[int], args: argparse.Namespace
) -> list[Any]:
    """Seconds (of a clock, of processors) and texts: of the rollout, then of the server, by turns.

    A first round, which compiles, is left out.
    """
    server, rounds = service._server, []
    staying = set(range(len(requests))) - leaving
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as clients:
        for _ in range(args.repeats + 1):
            alone = await asyncio.to_thread(_alone, service, requests, staying, args.slots)
            busy, loop = time.process_time(), asyncio.get_running_loop()
            seconds, found = await loop.run_in_executor(clients, _ask_all, port, requests, leaving)
            rounds.append((alone, (seconds, time.process_time() - busy, found)))
    server.should_exit = True
    await serving
    return rounds[1:]


def _ask_all(
    port: int, requests: list[dict[str, Any]], leaving: set[int]
) -> tuple[float, dict[int, str]]:
    """Seconds and texts of all requests at one time; runs in the process of the clients."""

    async def ask_all() -> list[str | None]:
        return await asyncio.gather(
            *(_ask(port, request, k in leaving) for k, request in enumerate(requests))
        )

    began = time.perf_counter()
    found = asyncio.run(ask_all())
    seconds = time.perf_counter() - began
    return seconds, {k: text for k, text in enumerate(found) if text is not None}


async def _ask(port: int, request: dict[str, Any], leaves: bool) -> str | None:
    """The text of an answer; None for a client that left before it came."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = json.dumps(request).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    await writer.drain()
    try:
        if leaves:
            await asyncio.sleep(random.uniform(0, 0.5))
            return None
        answer = (await reader.read()).partition(b"\r\n\r\n")[2]
        return str(json.loads(answer)["choices"][0]["text"])
    finally:
        writer.close()


if __name__ == "__main__":
    main()
