"""The pictures of streamed tars, shuffled through a buffer: which is shown as the n-th is a pure function of (seed, n), as of a pack.

A pass goes through the tars in a drawn order, and through windows of as many pictures as the buffer has, each shuffled. A window holds names,
places and captions; a picture is decoded when its batch is near.
"""

import functools
import logging
import warnings
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from PIL import Image

from gan_t2i.core.errors import GanT2IError
from gan_t2i.core.runtime import seeded_rng
from gan_t2i.data.batches.sampler import Batch
from gan_t2i.data.batches.stream import StreamedDataset
from gan_t2i.data.decode import BadImageError, Pixels, load_image
from gan_t2i.data.packing import cores, place_of
from gan_t2i.data.records import BadItem, Record

log = logging.getLogger(__name__)

Decoded = Future[Pixels | BadItem]


@dataclass(frozen=True)
class StreamedBatch(Batch):
    """A batch whose ids stand for captions that it brings along."""

    texts: tuple[str, ...]  # by id


class StreamSampler:
    """Endless shuffled passes over the training pictures of a stream, one random caption a picture.

    A picture that cannot be decoded is refused, counted in `refused`, and another one of its window is shown in its place.

    Args:
        stream: of tars.
        seed: of the run.
        buffer: pictures that are shuffled with each other. At most two windows of so many records are held, and two batches of pictures.
        negatives: how many captions of other pictures to hold a picture against; each is that of the picture before.
    """

    def __init__(self, stream: StreamedDataset, seed: int, buffer: int, negatives: int = 1) -> None:
        self.stream = stream
        self.seed = seed
        self.buffer = buffer
        self.negatives = negatives
        self.refused = 0
        self.window = functools.lru_cache(maxsize=2)(self._fill)
        Image.init()  # registers every format now: the threads would race to do it
        self._pool = ThreadPoolExecutor(cores())
        self._ahead: dict[int, Decoded] = {}  # place -> picture of the next batch
        # What Pillow warns of is judged by the decoder; the filter is the whole process's, so it is not set around each picture.
        warnings.filterwarnings("ignore", module=r"PIL\.")

    def _fill(self, epoch: int, number: int) -> list[Record]:
        """The window of that number, shuffled."""
        order = torch.randperm(len(self.stream.names), generator=seeded_rng(self.seed, "tars", epoch)).tolist()
        records = self.stream.records(order, number * self.buffer, (number + 1) * self.buffer)
        places = torch.randperm(len(records), generator=seeded_rng(self.seed, "window", epoch, number)).tolist()
        return [records[place] for place in places]

    def _find(self, position: int) -> tuple[list[Record], int]:
        """The window in which the picture at that position of the endless stream is, and its place there."""
        epoch, place = divmod(position, len(self.stream))
        return self.window(epoch, place // self.buffer), place % self.buffer

    def _record(self, position: int) -> Record:
        window, place = self._find(position)
        return window[place]

    def batch(self, nimg: int, count: int, shown: slice = slice(None)) -> StreamedBatch:
        """The pictures nimg .. nimg + count, of which only those of the rows `shown` are decoded.

        All else is the same whatever rows are shown, even where pictures are refused: so processes agree without asking each other.
        """
        positions = range(nimg, nimg + count)
        records = [self._record(position) for position in positions]
        draws = torch.rand(count, generator=seeded_rng(self.seed, "caption", nimg)).tolist()
        told = [_draw(record, draw) for record, draw in zip(records, draws, strict=True)]
        before = [told[-1], *told[:-1]]
        wrong = [negative not in record.captions for negative, record in zip(before, records, strict=True)]
        decoded = self._decode(positions[shown], range(nimg + count, nimg + 2 * count)[shown])
        images = []
        for row, picture in zip(range(count)[shown], decoded, strict=True):
            found = picture.result()
            if isinstance(found, BadItem):
                # The word on the negative stays as all processes know it, so it must be true of the other picture too.
                record, found = self._instead(positions[row], found, before[row] if wrong[row] else None)
                told[row] = _draw(record, draws[row])
            images.append(torch.from_numpy(found))
        texts = tuple(dict.fromkeys([*before, *told]))
        number = {text: index for index, text in enumerate(texts)}
        negatives = torch.tensor([[number[text]] * self.negatives for text in before], dtype=torch.int64).view(count, self.negatives)
        masks = torch.tensor(wrong)[:, None].expand(count, self.negatives)
        return StreamedBatch(torch.stack(images), torch.tensor([number[text] for text in told]), negatives, masks, texts)

    def _decode(self, positions: Sequence[int], next_ones: Sequence[int]) -> list[Decoded]:
        """The pictures at `positions`, and a beginning made with the next ones."""
        current = [self._ahead.get(position) or self._submit(position) for position in positions]
        self._ahead = {position: self._submit(position) for position in next_ones}
        return current

    def _submit(self, position: int) -> Decoded:
        return self._pool.submit(self._load, self._record(position))

    def _load(self, record: Record) -> Pixels | BadItem:
        try:
            return load_image(record.image, self.stream.sample.resolution, self.stream.settings)
        except BadImageError as error:
            return BadItem(error.kind, place_of(record), str(error))

    def _instead(self, position: int, bad: BadItem, negative: str | None) -> tuple[Record, Pixels]:
        """The next picture in the window of a refused one that can be decoded, and is not told by `negative`."""
        self._refuse(bad)
        window, place = self._find(position)
        others = deque(window)
        others.rotate(-place - 1)
        for record in others:
            if negative not in record.captions and not isinstance(found := self._load(record), BadItem):
                return record, found
        raise GanT2IError(f"none of {len(window)} pictures that follow each other in the tars can be shown ({bad.where}: {bad.why})")

    def _refuse(self, bad: BadItem) -> None:
        if self.stream.settings.on_bad == "error":
            raise GanT2IError(f"{bad.where}: {bad.why}")
        self.refused += 1
        if self.refused & (self.refused - 1) == 0:
            log.warning(f"unusable pictures of the stream, replaced by others: {self.refused:,}, the last one {bad.where}: {bad.why}")


def _draw(record: Record, draw: float) -> str:
    return record.captions[int(draw * len(record.captions))]
