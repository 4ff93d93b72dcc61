"""Captions that are wrong of a picture in a single respect, of other pictures of the training data.

A random caption of another picture gives itself away by its colour or its count, and a discriminator never has to look at the shape; a
caption that is right but for one thing makes everything matter.
"""

import random
from collections import defaultdict
from collections.abc import Hashable

from gan_t2i.data.packing import PackedDataset
from gan_t2i.data.shapes_grammar import Scene, composition
from gan_t2i.errors import GanT2IError


class OneChange:
    """For pictures with a scene, captions of scenes that differ from it in one respect, or that bind the same words otherwise.

    Args:
        dataset: whose extras hold the scenes of its pictures; `GanT2IError` where they do not.
    """

    def __init__(self, dataset: PackedDataset) -> None:
        if not all("scene" in dataset.extras[item] for item in dataset.train):
            raise GanT2IError("loss.negatives one_change needs data with scenes, such as the built-in shapes; allowed here: random")
        self._captions = dataset.caption_ids
        self._scenes = {item: Scene.from_json(dataset.extras[item]["scene"]) for item in dataset.train.tolist()}
        self._truths = {item: truth(scene) for item, scene in self._scenes.items()}
        self._alike: defaultdict[Hashable, list[int]] = defaultdict(list)
        for item, scene in self._scenes.items():
            for key in changes(scene):
                self._alike[key].append(item)

    def draw(self, item: int, rng: random.Random) -> int | None:
        """The id of such a caption for the picture `item`; None where the data set has none."""
        keys = changes(self._scenes[item])
        rng.shuffle(keys)
        for key in keys:
            alike = self._alike[key]
            for other in rng.sample(alike, min(len(alike), 8)):
                if self._truths[other] != self._truths[item]:
                    return rng.choice(self._captions[other])
        return None


def truth(scene: Scene) -> Hashable:
    """What the captions of a scene say: equal for two scenes of a task of which the same captions are true."""
    return (scene.task, scene.background, scene.objects[0].size, composition(scene))


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
