"""Puts `gan-t2i serve` under load, compares its pictures with those of `Text2Image`, and times a new prompt at each request.

gan-t2i serve & python tests/benchmarks/serve_load.py http://127.0.0.1:8000
"""

import asyncio
import base64
import io
import random
import sys
import time
from collections.abc import Callable, Sequence

import httpx2
import torch
from PIL import Image

from gan_t2i import Text2Image

REQUESTS, CLIENTS, SEEDS, NEW_PROMPTS = 1000, 50, 4, 60
PROMPTS = ("a red apple, twemoji style", "grinning face", "a purple rocket", "penguin", "guitar", "a blue house", "umbrella", "fire")


def report(name: str, seconds: Sequence[float]) -> None:
    """Print the median of some times, and what 95 and 99% of them do not exceed."""
    ordered = sorted(seconds)
    shares = ", ".join(f"{share:.0%} {1000 * ordered[int(share * (len(ordered) - 1))]:.0f} ms" for share in (0.5, 0.95, 0.99))
    print(f"{name}: {shares}")


async def picture(client: httpx2.AsyncClient, prompt: str, seed: int) -> Image.Image:
    """Ask for a picture, again where the queue is full; raises `httpx2.HTTPStatusError` for any other refusal."""
    while True:
        fields = {"prompt": prompt, "seed": seed, "response_format": "b64_json", "output_format": "png"}
        answer = await client.post("/v1/images/generations", json=fields)
        if answer.status_code != 429:
            break
        await asyncio.sleep(float(answer.headers["retry-after"]))
    answer.raise_for_status()
    return Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"])))


async def load(address: str, model: Text2Image) -> None:
    """Send all requests, and count pictures that differ from the model's own."""
    wanted = {(prompt, seed): model.generate([prompt], seeds=[seed])[0].tobytes() for prompt in PROMPTS for seed in range(SEEDS)}
    rng = random.Random(0)
    jobs = [(rng.choice(PROMPTS), rng.randrange(SEEDS)) for _ in range(REQUESTS)]
    seconds: list[float] = []
    wrong = 0
    async with httpx2.AsyncClient(base_url=address, timeout=120) as client:

        async def work() -> None:
            nonlocal wrong
            while jobs:
                job = jobs.pop()
                start = time.perf_counter()
                drawn = await picture(client, *job)
                seconds.append(time.perf_counter() - start)
                wrong += drawn.tobytes() != wanted[job]

        await asyncio.gather(*(work() for _ in range(CLIENTS)))
        report(f"{len(seconds)} of {REQUESTS} requests answered, {wrong} wrong, {CLIENTS} clients", seconds)
        seconds.clear()
        for number in range(NEW_PROMPTS):
            start = time.perf_counter()
            await picture(client, f"a red cat {number}", 0)
            seconds.append(time.perf_counter() - start)
        report("a new prompt each time, one client", seconds)


@torch.no_grad()
def alone(model: Text2Image) -> None:
    """Time encoder and generator without a server."""

    def timed(draw: Callable[[int], object], number: int) -> float:
        start = time.perf_counter()
        draw(number)
        return time.perf_counter() - start

    z = torch.zeros(1, model.generator.z_width)
    report("encoder and generator alone", [timed(lambda n: model.generator(z, model.encoder.encode([f"a red dog {n}"])), n) for n in range(60)])


if __name__ == "__main__":
    pipeline = Text2Image.load()
    asyncio.run(load(sys.argv[1], pipeline))
    alone(pipeline)
