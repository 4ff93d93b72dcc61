"""Models whose pictures are searched for: the packaged one of shapes, and small untrained ones with alpha."""

from collections.abc import Callable

import pytest

import gan_t2i.models  # noqa: F401 (registers them)
from gan_t2i import registry
from gan_t2i.core.runtime import seeded_weights
from gan_t2i.models.latent_generator import LatentGenerator
from gan_t2i.sampling.pipeline import Text2Image

OPTIONS = {
    "residual": {"blocks": 1, "word_blocks": 1, "channel_max": 16},
    "style": {"word_resolutions": [4, 8], "local_styles": True, "channel_max": 16},
    "transformer": {"width": 32, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="session")
def shapes() -> Text2Image:
    return Text2Image.load("pretrained:shapes64", device="cpu")


@pytest.fixture(scope="session")
def small(shapes: Text2Image) -> Callable[..., Text2Image]:
    """Makes an untrained model with alpha of a registered generator: of 16 px in pixels, or of 64 px in latents."""

    def make(name: str, *, latents: bool = False) -> Text2Image:
        params = {"w_width": 32, "text_head": {"width": 32, "layers": 1, "heads": 2}, **OPTIONS[name]}
        sizes = {"text_width": shapes.encoder.width, "max_tokens": shapes.encoder.max_tokens}
        with seeded_weights(0):
            generator = registry.build("generator", name, params, resolution=16, channels=4, **sizes)
            if latents:
                autoencoder = registry.build("autoencoder", "conv", {"latent_channels": 4, "width": 8}, resolution=64, channels=4)
                generator = LatentGenerator(generator, autoencoder)
        return Text2Image(generator.eval().requires_grad_(False), shapes.encoder, shapes.info)

    return make
