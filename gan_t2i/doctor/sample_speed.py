"""Measure how fast a model generates: one picture from a new prompt, and a batch of 16."""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gan_t2i.core.images import to_pictures
from gan_t2i.core.phases import phase
from gan_t2i.core.runtime import seeded_rng, synchronize
from gan_t2i.doctor.flops import FlopCounter
from gan_t2i.sampling.pipeline import Text2Image

BATCH = 16
CALLS = 4
"""Calls of each kind per repeat."""


@dataclass(frozen=True)
class SampleSpeed:
    """Times in seconds per picture; all but the first calls are medians."""

    first: float
    """The first picture of a pipeline that was just loaded."""
    warm: float
    """A picture from a new prompt, through `Text2Image.generate`."""
    encoder: float
    """The forward pass of the text encoder alone, on one prompt."""
    generator: float
    """The forward pass of the generator alone, on one encoded prompt."""
    batch_first: float
    """A picture of a batch of 16 that is encoded and generated at once, for the first time."""
    batch_warm: float
    """The same, once warm."""
    gflop_per_image: float
    """Operations of the generator."""

    @property
    def overhead(self) -> float:
        """Ratio of the time through the pipeline to that of the two forward passes."""
        return self.warm / (self.encoder + self.generator)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "overhead": self.overhead}


def measure_sampling(pipeline: Text2Image, prompts: list[str], repeats: int) -> SampleSpeed:
    """Generate from `prompts` in turn, one and 16 at a time; the pipeline's generator must not have been used before."""
    device = next(pipeline.generator.parameters()).device
    prompts = [prompts[index % len(prompts)] for index in range(max(BATCH, repeats * CALLS))]
    z = torch.randn(BATCH, pipeline.generator.z_width, generator=seeded_rng("bench")).to(device)

    def seconds(work: Callable[[], object]) -> float:
        start = time.perf_counter()
        work()
        synchronize(device)
        return time.perf_counter() - start

    first = seconds(partial(draw_one, pipeline, prompts[0]))
    batch_first = seconds(partial(draw_batch, pipeline, prompts[:BATCH], z)) / BATCH
    text = pipeline.encoder.encode(prompts[:1]).to(device)
    warm, encoder, generator, batch = [], [], [], []
    with torch.no_grad():
        with FlopCounter() as counter:
            pipeline.generator(z[:1], text)
        for prompt in prompts[: repeats * CALLS]:  # in turns, as all three are compared
            warm.append(seconds(partial(draw_one, pipeline, prompt)))
            encoder.append(seconds(partial(pipeline.encoder.encode, [prompt])))
            generator.append(seconds(partial(pipeline.generator, z[:1], text)))
        for _ in range(repeats):
            batch.append(seconds(partial(draw_batch, pipeline, prompts[:BATCH], z)) / BATCH)
    return SampleSpeed(
        first=first,
        warm=statistics.median(warm),
        encoder=statistics.median(encoder),
        generator=statistics.median(generator),
        batch_first=batch_first,
        batch_warm=statistics.median(batch),
        gflop_per_image=counter.total / 1e9,
    )


def draw_one(pipeline: Text2Image, prompt: str) -> None:
    """Generate one picture, as a phase of its own in profiles."""
    with phase("sample"):
        pipeline.generate(prompt)


@torch.no_grad()
def draw_batch(pipeline: Text2Image, prompts: list[str], z: Tensor) -> None:
    """Do what `generate` does, but for a whole batch at once: `generate` itself runs one by one, for equal pictures in any batch."""
    to_pictures(pipeline.generator(z, pipeline.encoder.encode(prompts).to(z.device)))
