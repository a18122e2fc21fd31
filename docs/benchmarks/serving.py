"""A server under load beside one rollout of the same requests, at equal slots.

    python docs/benchmarks/serving.py --model=countdown --requests=200 --slots=16

Sends all requests at one time, each with a canvas, a prompt, a threshold and a seed of its own.
Some clients leave early. Every other request must be answered, with the text that a rollout gives
it; the rates of tokens are compared.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_unmask import policies, tasks
from jax_unmask.commands import serve
from jax_unmask.generation import answers
from jax_unmask.policies import PerRow
from jax_unmask.rollout import rollout
from jax_unmask.rollout.continuous import answer_keys
from jax_unmask.runtime import compilation

POLICY = "threshold:threshold=0.9"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="countdown", help="a shipped model")
    parser.add_argument("--lengths", help="canvases; default: the model's own")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--cancelled", type=int, default=20)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    compilation.enable_cache()
    lengths = [] if args.lengths is None else [f"--lengths={args.lengths}"]
    service = serve.Service(
        serve.parser().parse_args(
            [
                *(f"--model={args.model}", f"--policy={POLICY}", "--port=0", "--queue=10000"),
                *(f"--slots={args.slots}", "--block_length=8", *lengths),
            ]
        )
    )
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
    alone = [_alone(service, requests, args.slots) for _ in range(args.repeats + 1)][1:]
    texts = alone[0][2]
    served = asyncio.run(_served(service, requests, leaving, args.repeats + 1))[1:]
    service.engine.close()
    for *_, found in served:
        for number, text in found.items():
            assert text == texts[number], (number, text, texts[number])
        assert set(range(args.requests)) - found.keys() <= leaving
    tokens = [request["max_tokens"] for request in requests]
    rates = [sum(tokens[k] for k in found) / seconds for seconds, _, found in served]
    rollouts = [sum(tokens) / seconds for seconds, *_ in alone]
    print(f"{args.requests} requests, {args.cancelled} of them cancelled, {args.slots} slots")
    print(f"rollout: {np.median(rollouts):.0f} tokens/s {sorted(map(round, rollouts))}")
    print(f"server: {np.median(rates):.0f} tokens/s {sorted(map(round, rates))}")
    print(f"server / rollout: {np.median(rates) / np.median(rollouts):.2f}")
    # Where other programs share the machine, seconds of its processors say more than those of a
    # clock; those of the server include its clients'.
    busy = [sum(tokens[k] for k in found) / cpu for _, cpu, found in served]
    busy_alone = [sum(tokens) / cpu for _, cpu, _ in alone]
    print(f"the same per processor second: {np.median(busy) / np.median(busy_alone):.2f}")
    print(f"ended: {dict(service.engine.counts.ended)}")


def _alone(
    service: Any, requests: list[dict[str, Any]], slots: int
) -> tuple[float, float, list[str]]:
    """Seconds (of a clock, of processors) and texts of one rollout per canvas length."""
    model = service.model
    writer, seconds, cpu, texts = model.writer, 0.0, 0.0, [""] * len(requests)
    policy, _ = policies.parse_policy(POLICY)
    for length in model.lengths:
        members = [k for k, request in enumerate(requests) if request["max_tokens"] == length]
        asked = [model.understand(requests[k], is_chat=False) for k in members]
        shape = max((each.shape for each in asked), key=lambda shape: shape.prompt_length)
        prompts = writer.tokenizer.pad_prompts(
            [each.prompts[0] for each in asked], shape.prompt_length
        )
        seeds = np.asarray([requests[k]["seed"] for k in members], np.uint32)
        thresholds = jnp.asarray([requests[k]["threshold"] for k in members], jnp.float32)
        settings = answers.dataclasses.replace(shape.settings, slots=slots)
        began, busy = time.perf_counter(), time.process_time()
        out = rollout(
            *(writer.denoiser, writer.params, policy, {"threshold": PerRow(thresholds)}, prompts),
            answer_keys(seeds, np.zeros(len(members), np.int32)),
            settings,
        )
        tokens = np.asarray(jax.device_get(out.tokens))
        seconds += time.perf_counter() - began
        cpu += time.process_time() - busy
        for k, text in zip(members, writer.tokenizer.decode_batch(tokens), strict=True):
            texts[k] = text
    return seconds, cpu, texts


async def _served(
    service: Any, requests: list[dict[str, Any]], leaving: set[int], repeats: int
) -> list[tuple[float, float, dict[int, str]]]:
    """Seconds (of a clock, of processors) and texts of each round of all requests at one time."""
    server = service._server
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port, rounds = server.servers[0].sockets[0].getsockname()[1], []
    for _ in range(repeats):
        began, busy = time.perf_counter(), time.process_time()
        found = await asyncio.gather(
            *(_ask(port, request, k in leaving) for k, request in enumerate(requests))
        )
        seconds = time.perf_counter() - began
        texts = {k: text for k, text in enumerate(found) if text is not None}
        rounds.append((seconds, time.process_time() - busy, texts))
    server.should_exit = True
    await serving
    return rounds


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
