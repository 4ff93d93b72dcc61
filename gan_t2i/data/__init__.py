"""Captioned pictures: readers of what users have, packing at the training resolution, and the built-in data sets."""
