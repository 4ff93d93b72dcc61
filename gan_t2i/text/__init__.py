"""Captions to embeddings: the frozen sentence encoders and their cache. Importing it registers the kind ``text_encoder``."""

from gan_t2i.text import encoder, tiny

__all__ = ["encoder", "tiny"]
