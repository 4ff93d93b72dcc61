"""Measure how fast a model generates: one picture from a new prompt, and a batch of 16."""

import statistics
from dataclasses import dataclass
from functools import partial

import torch

from gan_t2i.core.images import to_pictures
from gan_t2i.core.phases import phase
from gan_t2i.core.runtime import seeded_rng
from gan_t2i.doctor.flops import FlopCounter, seconds_of
from gan_t2i.sampling import draw
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
    known: float
    """A picture from a prompt that is encoded already, as each of a sheet is; a GPU replays it."""
    batch_first: float
    """A picture of a batch of 16 that is encoded and generated at once, for the first time."""
    batch_warm: float
    """The same, once warm."""
    gflop_per_image: float
    """Operations of the generator."""
    overhead: float
    """Ratio of the time through the pipeline to that of the two forward passes."""


@torch.no_grad()
def measure_sampling(pipeline: Text2Image, prompts: list[str], repeats: int) -> SampleSpeed:
    """Generate from `prompts` in turn, one and 16 at a time; the pipeline's generator must not have been used before."""
    device = next(pipeline.generator.parameters()).device
    prompts = [prompts[index % len(prompts)] for index in range(max(BATCH, repeats * CALLS))]
    z = torch.randn(BATCH, pipeline.generator.z_width, generator=seeded_rng("bench")).to(device)
    seconds = partial(seconds_of, device=device)

    def draw_batch() -> None:  # as `generate` does, but at once: `generate` itself runs one by one, for equal pictures in any batch
        to_pictures(pipeline.generator(z, pipeline.encoder.encode(prompts[:BATCH]).to(device)))

    first = seconds(partial(draw_one, pipeline, prompts[0]))
    batch_first = seconds(draw_batch) / BATCH
    text = pipeline.encoder.encode(prompts[:1]).to(device)
    warm, encoder, generator, known = [], [], [], []
    with FlopCounter() as counter:
        pipeline.generator(z[:1], text)
    for prompt in prompts[: repeats * CALLS]:  # in turns, as all are compared
        warm.append(seconds(partial(draw_one, pipeline, prompt)))
        encoder.append(seconds(partial(pipeline.encoder.encode, [prompt])))
        generator.append(seconds(partial(pipeline.generator, z[:1], text)))
        known.append(seconds(lambda: draw.draw_one(pipeline.generator, draw.latent(pipeline.generator, 0), text)))
    batch = [seconds(draw_batch) / BATCH for _ in range(repeats)]
    one, read, drawn, again, many = map(statistics.median, (warm, encoder, generator, known, batch))
    return SampleSpeed(first, one, read, drawn, again, batch_first, many, counter.total / 1e9, overhead=one / (read + drawn))


def draw_one(pipeline: Text2Image, prompt: str) -> None:
    """Generate one picture, as a phase of its own in profiles."""
    with phase("sample"):
        pipeline.generate(prompt)
