"""Generates pictures from prompts with a trained model. Imports nothing from training."""

from gan_t2i.sampling.pipeline import Text2Image, generate_image

__all__ = ["Text2Image", "generate_image"]
