"""Serves a trained model over HTTP with the images API of OpenAI. Imports nothing from training. Needs the extra ``serve``."""
