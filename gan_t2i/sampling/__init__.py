"""From a snapshot and prompts to pictures. Imports nothing from training."""

from gan_t2i.sampling.pipeline import Text2Image, generate_image

__all__ = ["Text2Image", "generate_image"]
