"""Hard negatives: captions of other training pictures that are wrong in a single respect, or near in meaning.

A random caption of another picture differs in colour or count already, so a discriminator never has to look at the shape; a caption with a
single error makes every word count.
"""

import contextlib
import hashlib
import json
import logging
import random
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gan_t2i.core.errors import GanT2IError
from gan_t2i.core.files import atomic_file, cache_dir
from gan_t2i.core.runtime import seeded_rng
from gan_t2i.data.builtin.shapes import sample_captions
from gan_t2i.data.builtin.shapes_grammar import Scene, composition, split_of, vocabulary
from gan_t2i.data.packing import PackedDataset

log = logging.getLogger(__name__)

# A negative is one of this many nearest captions: few enough to be hard, enough that a paraphrase among them does little harm.
NEAREST = 16
# With more captions than this, the nearest are sought in a sample, or the time would grow with their square.
CANDIDATES = 50_000
# A row of the table has room for up to this many of a picture's own captions, which are its nearest.
MOST_OWN = 48
CHUNK_ELEMENTS = 2**24  # similarities at a time: 64 MB
LONG_SECONDS = 5.0


class OneChange:
    """For pictures with a scene: captions of scenes that differ in one respect, or that bind the same words otherwise.

    Most are captions of other training pictures. Few data sets hold the same two objects in another relation or with their colours swapped, so
    such captions are written; no held-out composition is among them. Raises `GanT2IError` where the extras of `dataset` hold no scenes.
    """

    def __init__(self, dataset: PackedDataset) -> None:
        if not all("scene" in dataset.extras[item] for item in dataset.train):
            raise GanT2IError("negatives one_change need data with scenes, such as the built-in shapes; allowed here: random, nearest")
        self._caption_ids = dataset.caption_ids
        self._scenes = {item: Scene.from_json(dataset.extras[item]["scene"]) for item in dataset.train.tolist()}
        self._meanings = {item: meaning(scene) for item, scene in self._scenes.items()}
        self._items_by_rest: defaultdict[Hashable, list[int]] = defaultdict(list)
        for item, scene in self._scenes.items():
            for rest in rests(scene):
                self._items_by_rest[rest].append(item)
        self.captions: list[str] = []  # the written ones, whose ids follow those of the data set
        self._written: dict[int, list[int]] = {}
        ids = {caption: number for number, caption in enumerate(dataset.captions)}
        for item, scene in self._scenes.items():
            rng = random.Random(f"written {item}")
            # the plain one as often as in the data set, so that the wording does not give away that a caption was written
            texts = [rng.choice(sample_captions(other, rng)) for other in swapped(scene)]
            for text in texts:
                if text not in ids:
                    ids[text] = len(ids)
                    self.captions.append(text)
            if texts:
                self._written[item] = [ids[text] for text in texts]

    def draw(self, item: int, caption: int, rng: random.Random) -> int | None:
        """Return the id of a caption that is wrong for the picture `item`, whatever `caption` it is shown with; None where there is none."""
        written = self._written.get(item, [])
        choices: list[Hashable] = [*rests(self._scenes[item]), *written]
        rng.shuffle(choices)
        for choice in choices:
            if isinstance(choice, int):
                return choice
            alike = self._items_by_rest[choice]
            for other in rng.sample(alike, min(len(alike), 8)):
                if self._meanings[other] != self._meanings[item]:
                    return rng.choice(self._caption_ids[other])
        return None


class Nearest:
    """For any data: training captions that the text encoder places next to the one that is shown. Paraphrases may be among them.

    `vectors` maps caption ids to the encoder's pooled vectors [n, E] float32. `seed` samples the candidates where there are more captions
    than `CANDIDATES`.
    """

    def __init__(self, dataset: PackedDataset, vectors: Callable[[Sequence[int]], Tensor], seed: int) -> None:
        trained = dataset.train_caption_ids
        self._own = dataset.caption_ids
        self._texts = {caption: normalized(dataset.captions[caption]) for caption in trained}
        # of captions with the same text one is a candidate, so that a picture's own take as many columns as it has texts
        candidates = list({self._texts[caption]: caption for caption in reversed(trained)}.values())[::-1]
        if len(candidates) > CANDIDATES:
            sample = torch.randperm(len(candidates), generator=seeded_rng(seed, "nearest"))[:CANDIDATES]
            candidates = [candidates[index] for index in sample.sort().values.tolist()]
        width = NEAREST + min(max(len(self._own[item]) for item in dataset.train.tolist()), MOST_OWN)
        self._rows = {caption: row for row, caption in enumerate(trained)}
        keys = vectors(candidates).float()
        digest = hashlib.sha256(json.dumps([[self._texts[caption] for caption in trained], trained, candidates, width]).encode())
        digest.update(keys.numpy().tobytes())
        self._table = kept_table(digest.hexdigest()[:32], lambda: nearest_table(trained, candidates, keys, vectors, width))

    def draw(self, item: int, caption: int, rng: random.Random) -> int | None:
        """Return one of the `NEAREST` captions next to `caption` that are not those of the picture `item`; None where there is none."""
        own = {self._texts[other] for other in self._own[item]}
        near = [other for other in self._table[self._rows[caption]].tolist() if self._texts[other] not in own][:NEAREST]
        return rng.choice(near) if near else None


HardNegatives = OneChange | Nearest


def normalized(text: str) -> str:
    """Return a caption in one case and with single blanks, neither of which changes its meaning."""
    return " ".join(text.casefold().split())


def kept_table(name: str, search: Callable[[], Tensor]) -> Tensor:
    """Return the table `name` of the cache, else that of `search`; one that took long is kept."""
    path = cache_dir() / "nearest" / f"{name}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):  # it is not there, or damaged
        return torch.from_numpy(np.load(path))
    start = time.perf_counter()
    table = search()
    if time.perf_counter() - start > LONG_SECONDS:
        with contextlib.suppress(OSError), atomic_file(path) as temporary, temporary.open("wb") as file:  # a full disk costs time alone
            np.save(file, table.numpy())
    return table


def nearest_table(
    queries: Sequence[int], candidates: Sequence[int], keys: Tensor, vectors: Callable[[Sequence[int]], Tensor], width: int
) -> Tensor:
    """Return, for each of the captions `queries`, the `width` of `candidates` with the largest cosine, nearest first: int32 [Q, <= width].

    keys: the vectors [candidates, E] of `candidates`.
    """
    ids = torch.tensor(candidates, dtype=torch.int32)
    keys = F.normalize(keys, dim=1).T
    size = max(1, CHUNK_ELEMENTS // len(candidates))
    table = torch.empty(len(queries), min(width, len(candidates)), dtype=torch.int32)
    start_time = time.perf_counter()
    for start in range(0, len(queries), size):
        # the length of a query does not change the order
        similarity = vectors(queries[start : start + size]).float() @ keys
        table[start : start + size] = ids[similarity.topk(table.shape[1], dim=1).indices]
        if start == 0:
            seconds = (time.perf_counter() - start_time) * len(queries) / min(size, len(queries))
            if seconds > LONG_SECONDS:
                log.info(f"finding the nearest captions of {len(queries):,} takes about {seconds:.0f} seconds")
    return table


def meaning(scene: Scene) -> Hashable:
    """Return what the captions of a scene state; it is equal for two scenes of a task if the same captions are true of them."""
    return (scene.task, scene.background, scene.objects[0].size, composition(scene))


def swapped(scene: Scene) -> list[Scene]:
    """Return scenes of the same two objects with their colours swapped, or in another relation, except held-out and equivalent ones."""
    if scene.task not in ("two", "relation"):
        return []
    a, b = scene.objects
    others = [replace(scene, objects=(replace(a, colour=b.colour), replace(b, colour=a.colour)))]
    others += [replace(scene, relation=relation) for relation in vocabulary().relations if scene.relation not in (None, relation)]
    return [other for other in others if meaning(other) != meaning(scene) and split_of(other) == "train"]


def rests(scene: Scene) -> list[Hashable]:
    """Return a scene's meaning without one of its parts, for each part; scenes that share such a rest differ in that part alone."""
    first = scene.objects[0]
    if scene.task in ("two", "relation"):
        return _rests_of_pair(scene)
    facts = {"background": scene.background, "colour": first.colour, "shape": first.shape, "size": first.size}
    facts |= {"position": str(first.position)} if scene.task == "position" else {}
    facts |= {"count": str(scene.count)} if scene.task == "count" else {}
    return [(scene.task, *((name, "?" if name == left_out else value) for name, value in facts.items())) for left_out in facts]


def _rests_of_pair(scene: Scene) -> list[Hashable]:
    a, b = ((thing.colour, thing.shape) for thing in scene.objects)
    relation = None
    if scene.task == "relation":
        _, subject, relation, _ = composition(scene)
        if subject != " ".join(a):
            a, b = b, a
    # it matters which of the two changes where they stand in a relation; in "A and B" it does not
    order = (0, 1) if relation else (None, None)
    bound = tuple(tuple(sorted(words)) for words in zip(a, b, strict=True))
    found: list[tuple[Hashable, ...]] = [("background?", relation, (a, b) if relation else frozenset((a, b)))]
    found.append(("bound?", scene.background, relation, bound))
    for index, changed, kept in ((order[0], a, b), (order[1], b, a)):
        found += [(scene.background, relation, index, kept, part, changed[1 - part]) for part in (0, 1)]
    if relation:
        found.append(("relation?", scene.background, frozenset((a, b))))
    return [(scene.task, *rest) for rest in found]
