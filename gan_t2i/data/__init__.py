"""Captioned pictures: readers of common formats, packing at the training resolution, batches, built-in sets and inspection."""
