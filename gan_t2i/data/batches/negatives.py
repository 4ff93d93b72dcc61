"""Captions of other pictures of the training data that are hard to tell from a picture's own: wrong in a single respect, or near in meaning.

A random caption of another picture gives itself away by its colour or its count, and a discriminator never has to look at the shape; a
caption that is right but for one thing makes everything matter.
"""

import logging
import random
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_t2i.core.errors import GanT2IError
from gan_t2i.core.runtime import seeded_rng
from gan_t2i.data.builtin.shapes import CAPTIONS
from gan_t2i.data.builtin.shapes_grammar import Scene, captions, composition, split_of, vocabulary
from gan_t2i.data.packing import PackedDataset

log = logging.getLogger(__name__)

# A negative is one of so many nearest captions: few enough to be hard, enough that a paraphrase among them does little harm.
NEAREST = 16
# Beyond so many captions the nearest are sought in a sample of them, or the time would grow with their square.
CANDIDATES = 50_000
# A row of the table has room for a picture's own captions, which are its nearest, up to this many.
MOST_OWN = 48
CHUNK_ELEMENTS = 2**24  # similarities at a time: 64 MB
LONG_SECONDS = 5.0


class HardNegatives(Protocol):
    """A source of negative captions for training pictures."""

    def draw(self, item: int, caption: int, rng: random.Random) -> int | None:
        """Return the id of a caption that is wrong for the picture `item`, which is shown with `caption`; None where there is none."""


class OneChange:
    """For pictures with a scene, captions of scenes that differ from it in one respect, or that bind the same words otherwise.

    They are captions of other training pictures. Few data hold the same two objects in another relation, or with their colours exchanged,
    so such captions are written: `captions`, whose ids follow those of the data set. No held-out composition is among them.

    Args:
        dataset: whose extras hold the scenes of its pictures; `GanT2IError` where they do not.
    """

    def __init__(self, dataset: PackedDataset) -> None:
        if not all("scene" in dataset.extras[item] for item in dataset.train):
            raise GanT2IError("loss.negatives one_change needs data with scenes, such as the built-in shapes; allowed here: random, nearest")
        self._captions = dataset.caption_ids
        self._dataset_captions = dataset.captions
        self._scenes = {item: Scene.from_json(dataset.extras[item]["scene"]) for item in dataset.train.tolist()}
        self._truths = {item: truth(scene) for item, scene in self._scenes.items()}
        self._alike: defaultdict[Hashable, list[int]] = defaultdict(list)
        for item, scene in self._scenes.items():
            for key in changes(scene):
                self._alike[key].append(item)
        self.captions: list[str] = []
        self._written: dict[int, list[int]] = {}
        self._write()

    def _write(self) -> None:
        ids: dict[str, int] = {caption: number for number, caption in enumerate(self._dataset_captions)}
        for item, scene in self._scenes.items():
            rng = random.Random(f"written {item}")
            texts = [drawn_caption(other, rng) for other in exchanged(scene)]
            for text in texts:
                if text not in ids:
                    ids[text] = len(ids)
                    self.captions.append(text)
            if texts:
                self._written[item] = [ids[text] for text in texts]

    def draw(self, item: int, caption: int, rng: random.Random) -> int | None:
        """Return the id of such a caption for the picture `item`, whatever its `caption`; None where the data set has none."""
        written = self._written.get(item, [])
        keys: list[Hashable] = [*changes(self._scenes[item]), *written]
        rng.shuffle(keys)
        for key in keys:
            if isinstance(key, int):
                return key
            alike = self._alike[key]
            for other in rng.sample(alike, min(len(alike), 8)):
                if self._truths[other] != self._truths[item]:
                    return rng.choice(self._captions[other])
        return None


class Nearest:
    """For any data, training captions that the text encoder places next to the one that is shown. Paraphrases may be among them.

    Args:
        dataset: pictures and captions.
        vectors: caption ids -> the encoder's pooled vectors [n, E] float32.
        seed: of the sample of candidates, where there are more captions than `CANDIDATES`.
    """

    def __init__(self, dataset: PackedDataset, vectors: Callable[[Sequence[int]], Tensor], seed: int) -> None:
        owned = [dataset.caption_ids[item] for item in dataset.train.tolist()]
        trained = dataset.train_caption_ids
        self._owned = dataset.caption_ids
        self._texts = {caption: plain(dataset.captions[caption]) for caption in trained}
        # of captions that say the same a single one is a candidate, so that a picture's own take as many places as it has texts
        candidates = list({self._texts[caption]: caption for caption in reversed(trained)}.values())[::-1]
        if len(candidates) > CANDIDATES:
            drawn = torch.randperm(len(candidates), generator=seeded_rng(seed, "nearest"))[:CANDIDATES]
            candidates = [candidates[place] for place in drawn.sort().values.tolist()]
        width = NEAREST + min(max(map(len, owned)), MOST_OWN)
        self._rows = {caption: row for row, caption in enumerate(trained)}
        self._table = nearest_table(trained, candidates, vectors, width)

    def draw(self, item: int, caption: int, rng: random.Random) -> int | None:
        """One of the `NEAREST` captions next to `caption`, none of which the picture `item` has; None where all are its own."""
        own = {self._texts[other] for other in self._owned[item]}
        near = [other for other in self._table[self._rows[caption]].tolist() if self._texts[other] not in own][:NEAREST]
        return rng.choice(near) if near else None


def plain(text: str) -> str:
    """A caption without what does not change its meaning: case, and how many blanks."""
    return " ".join(text.casefold().split())


def nearest_table(queries: Sequence[int], candidates: Sequence[int], vectors: Callable[[Sequence[int]], Tensor], width: int) -> Tensor:
    """For each of the captions `queries`, the `width` of `candidates` with the largest cosine, nearest first: int32 [Q, width or fewer]."""
    ids = torch.tensor(candidates, dtype=torch.int32)
    towards = F.normalize(vectors(candidates).float(), dim=1).T  # [E, candidates]
    size = max(1, CHUNK_ELEMENTS // len(candidates))
    table = torch.empty(len(queries), min(width, len(candidates)), dtype=torch.int32)
    begun = time.perf_counter()
    for start in range(0, len(queries), size):
        # the length of a query does not change which are its nearest
        similarity = vectors(queries[start : start + size]).float() @ towards
        table[start : start + size] = ids[similarity.topk(table.shape[1], dim=1).indices]
        if start == 0:
            seconds = (time.perf_counter() - begun) * len(queries) / min(size, len(queries))
            if seconds > LONG_SECONDS:
                log.info(f"finding the nearest captions of {len(queries):,} takes about {seconds:.0f} seconds")
    return table


def truth(scene: Scene) -> Hashable:
    """What the captions of a scene say: equal for two scenes of a task of which the same captions are true."""
    return (scene.task, scene.background, scene.objects[0].size, composition(scene))


def exchanged(scene: Scene) -> list[Scene]:
    """Scenes of the same two objects with their colours exchanged, or in another relation; none that is held out or is true as well."""
    if scene.task not in ("two", "relation"):
        return []
    a, b = scene.objects
    others = [replace(scene, objects=(replace(a, colour=b.colour), replace(b, colour=a.colour)))]
    others += [replace(scene, relation=relation) for relation in vocabulary().relations if scene.relation not in (None, relation)]
    return [other for other in others if truth(other) != truth(scene) and split_of(other) == "train"]


def drawn_caption(scene: Scene, rng: random.Random) -> str:
    """A caption of the scene, the plain one as often as the data set has it, so that the wording does not tell that it was written."""
    plain_one, *others = captions(scene)
    return rng.choice([plain_one, *rng.sample(others, CAPTIONS - 1)])


def changes(scene: Scene) -> list[Hashable]:
    """What is left of a scene's truth without one of its parts, for each part; scenes that share such a rest differ in that part alone."""
    first = scene.objects[0]
    if scene.task in ("two", "relation"):
        return _changes_of_pair(scene)
    facts = {"background": scene.background, "colour": first.colour, "shape": first.shape, "size": first.size}
    facts |= {"position": str(first.position)} if scene.task == "position" else {}
    facts |= {"count": str(scene.count)} if scene.task == "count" else {}
    return [(scene.task, *((name, "?" if name == left_out else value) for name, value in facts.items())) for left_out in facts]


def _changes_of_pair(scene: Scene) -> list[Hashable]:
    a, b = ((thing.colour, thing.shape) for thing in scene.objects)
    relation = None
    if scene.task == "relation":
        _, told_first, relation, _ = composition(scene)
        if told_first != " ".join(a):
            a, b = b, a
    # which of the two is changed matters where they stand in a relation; in "A and B" it does not
    order = (0, 1) if relation else (None, None)
    bound = tuple(tuple(sorted(words)) for words in zip(a, b, strict=True))
    rests: list[tuple[Hashable, ...]] = [("background?", relation, (a, b) if relation else frozenset((a, b)))]
    rests.append(("bound?", scene.background, relation, bound))
    for place, changed, kept in ((order[0], a, b), (order[1], b, a)):
        rests += [(scene.background, relation, place, kept, part, changed[1 - part]) for part in (0, 1)]
    if relation:
        rests.append(("relation?", scene.background, frozenset((a, b))))
    return [(scene.task, *rest) for rest in rests]
