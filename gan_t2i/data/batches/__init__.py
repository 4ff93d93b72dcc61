"""From a data set to training batches: samplers, negative captions, streams."""
