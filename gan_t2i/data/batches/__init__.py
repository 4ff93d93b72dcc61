"""From a data set to training batches: samplers of packed and of streamed pictures, and negative captions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from gan_t2i.core.errors import UsageError
from gan_t2i.data.batches.negatives import Nearest, OneChange
from gan_t2i.data.batches.sampler import BatchSampler, Sampler
from gan_t2i.data.batches.stream import StreamSampler, open_stream
from gan_t2i.data.builtin import resolve_source
from gan_t2i.data.packing import PackedDataset, load_dataset
from gan_t2i.data.settings import DataConfig

Vectors = Callable[[Sequence[int]], Tensor]
"""Caption ids -> the text encoder's pooled vectors [n, E] float32."""


@dataclass(frozen=True)
class TrainingData:
    """The training data of a run, packed or streamed."""

    dataset: PackedDataset
    """All pictures and captions; of a stream a sample with the fingerprint of the whole, for everything but training."""
    captions: list[str]
    """Captions by id, as `dataset` and the sampler number them: those of the data set, then the negatives written for it."""
    train_captions: list[str]
    """Training captions, for a text encoder that learns its vocabulary from them."""
    sampler: Callable[[int, Vectors], BatchSampler]
    """Make the sampler of a run from its seed and the vectors of `captions`."""


def open_batches(settings: DataConfig, resolution: int, negatives: Sequence[str] = ("random",)) -> TrainingData:
    """Open the training data of `settings` at `resolution`, packing or scanning them on first use.

    `negatives` are the kinds of negative captions, one column each: "random", "one_change" or "nearest". Errors as for `load_dataset` and
    `open_stream`; also `UsageError` for negatives that the settings rule out, and `GanT2IError` where "one_change" finds no scenes.
    """
    source = resolve_source(settings.source, resolution, settings)
    if settings.stream:
        stream = open_stream(source, resolution, settings)
        dataset = stream.sample

        def stream_sampler(seed: int, vectors: Vectors) -> BatchSampler:
            return StreamSampler(stream, seed, settings.shuffle_buffer, len(negatives))

        return TrainingData(dataset, dataset.captions, stream.captions, stream_sampler)
    if "one_change" in negatives and settings.caption_dropout:
        raise UsageError("one_change negatives need data.caption_dropout = 0: a caption that has lost the changed word is not wrong")
    dataset = load_dataset(source, resolution, settings)
    one_change = OneChange(dataset) if "one_change" in negatives else None
    captions = [*dataset.captions, *(one_change.captions if one_change else [])]

    def sampler(seed: int, vectors: Vectors) -> BatchSampler:
        hard = {"one_change": one_change, "nearest": Nearest(dataset, vectors, seed) if "nearest" in negatives else None}
        return Sampler(dataset, seed, [hard.get(kind) for kind in negatives], settings)

    return TrainingData(dataset, captions, [dataset.captions[caption] for caption in dataset.train_caption_ids], sampler)
