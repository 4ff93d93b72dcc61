"""Networks that are pretrained on the real pairs before a run, and cached for every run of the same data."""
