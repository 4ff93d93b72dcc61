"""Detection of copies, with generators that copy and generators that do not."""

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gan_t2i.core.errors import GanT2IError
from gan_t2i.core.weights import hash_state
from gan_t2i.data.packing import PackedDataset, load_dataset
from gan_t2i.evaluation import copies as copies_module
from gan_t2i.evaluation.copies import CopiesResult, check_copies, choose_prompts, run_copies
from gan_t2i.evaluation.features import FeatureSpace, RandomFeatures
from gan_t2i.evaluation.recombined import recombine

RealOf = Callable[[str], Image.Image]


@pytest.fixture(scope="module")
def space() -> FeatureSpace:
    network = RandomFeatures()
    return FeatureSpace("random", hash_state(network), network.WIDTH, network)


def run(many: PackedDataset, space: FeatureSpace, picture: Callable[[str, int], Image.Image], **settings: object) -> CopiesResult:
    def generate(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        return [picture(prompt, seed) for prompt in prompts for seed in seeds]

    return run_copies(generate, many, space, **settings)  # type: ignore[arg-type]


def new_picture(prompt: str, seed: int) -> Image.Image:
    """Generate pictures of the same kind as the real ones, and none of them."""
    rng = np.random.default_rng(10_000 + seed)
    pixels = np.full((16, 16, 3), 255, np.uint8)
    x, y = rng.integers(1, 8, 2)
    pixels[y : y + 7, x : x + 7] = rng.integers(0, 256, 3)
    pixels[rng.integers(0, 16, 12), rng.integers(0, 16, 12)] = rng.integers(0, 256, 3)
    return Image.fromarray(pixels)


def test_copies_of_training_pictures_are_called_so(many: PackedDataset, space: FeatureSpace, real_of: RealOf) -> None:
    copies = [int(item) for item in many.train]

    def draw(prompt: str, seed: int) -> Image.Image:
        return Image.fromarray(many.gather([copies[seed % len(copies)]])[0].permute(1, 2, 0).numpy())

    result = run(many, space, draw)
    assert result.verdict.startswith("verdict: copying: 100% of the pictures (drawn recombined)")
    for row in result.rows:
        if row.kind.startswith("drawn"):
            assert (row.median, row.below) == (pytest.approx(0, abs=1e-5), 1)
    assert [one.distances[0] for one in result.closest] == pytest.approx([0] * 16, abs=1e-5)
    for one in result.closest:
        nearest = many.gather([one.items[0]])[0].permute(1, 2, 0).numpy()
        assert (np.asarray(one.picture) == nearest).all()


def test_new_pictures_of_the_same_kind_are_not(many: PackedDataset, space: FeatureSpace) -> None:
    result = run(many, space, new_picture)
    assert result.verdict.startswith("verdict: no sign of copying")
    own = {row.kind: row for row in result.rows if row.space == "random"}
    assert list(own) == ["real held out", "real training", "drawn train", "drawn held out", "drawn recombined"]
    assert own["real training"].below == pytest.approx(0.05, abs=0.01)
    assert own["drawn recombined"].median > 0.7 * own["real held out"].median
    assert result.baseline == "5% of training pictures lie nearer to another one; of the held-out ones 42 could be used, and 100 are needed"
    assert {row.space for row in result.rows} == {"random", "pixels"}


def test_recoloured_copies_of_training_pictures_count_too(many: PackedDataset, space: FeatureSpace) -> None:
    shown = many.train.tolist()
    dataset = copy.copy(many)
    # as if the last hundred pictures were copies of the first
    dataset.train, dataset.recoloured = many.train[:-100], dict(zip(shown[:100], ([item] for item in shown[-100:]), strict=True))
    dataset.__dict__.pop("shown", None)

    def draw(prompt: str, seed: int) -> Image.Image:
        return Image.fromarray(many.gather([shown[-1 - seed % 100]])[0].permute(1, 2, 0).numpy())

    result = run(dataset, space, draw)
    assert result.verdict.startswith("verdict: copying: 100% of the pictures (drawn recombined)")


def test_some_copies_among_new_pictures_are_suspicious(many: PackedDataset, space: FeatureSpace, real_of: RealOf) -> None:
    result = run(many, space, lambda prompt, seed: real_of("none") if seed % 4 == 0 else new_picture(prompt, seed))
    assert result.verdict.startswith("verdict: suspicious, look at the sheet")


def test_held_out_twins_of_training_pictures_do_not_lower_the_threshold(
    many: PackedDataset, space: FeatureSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nearly half of the held-out pictures are training pictures again: a threshold of 0 would hide every near copy."""
    monkeypatch.setattr(copies_module, "_BASE", 20)
    plain = run(many, space, new_picture)
    twins = _with_twins(many, tmp_path)
    result = run(twins, space, new_picture)
    assert "36 of 78 held-out pictures look the same as a training picture" in result.baseline
    assert result.thresholds["random"] == pytest.approx(plain.thresholds["random"], rel=0.3)
    [held] = [row for row in result.rows if (row.space, row.kind) == ("random", "real held out")]
    assert held.below >= 36 / 78  # all of them are shown, and it is said how many are twins


def _with_twins(many: PackedDataset, folder: Path) -> PackedDataset:
    lines = []
    items = [(int(item), "train") for item in many.train] + [(int(item), "heldout") for item in many.heldout]
    items += [(int(item), "twin") for item in many.train[:36]]
    for number, (item, kind) in enumerate(items):
        Image.fromarray(many.gather([item])[0].permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
        split = "train" if kind == "train" else "heldout"
        lines.append(json.dumps({"file_name": f"{number}.png", "text": f"{kind} {number}", "split": split}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return load_dataset(folder, 16, progress=False)


def test_prompts_of_one_s_own_and_what_is_written(many: PackedDataset, space: FeatureSpace) -> None:
    requests: list[tuple[str, int]] = []

    def picture(prompt: str, seed: int) -> Image.Image:
        requests.append((prompt, seed))
        return new_picture(prompt, seed)

    result = run(many, space, picture, prompts=["a", "b", "c"], limit=2)
    assert requests == [("a", 0), ("b", 1)]
    assert "(drawn own prompts)" in result.verdict
    values = json.loads(json.dumps(result.to_json()))
    assert [len(one["captions"]) for one in values["closest"]] == [3, 3]
    assert result.changed == {"prompts": "own", "limit": 2}
    assert result.sheet().width > 4 * 96
    assert {"Metrics/audit/random/drawn_own_prompts_median", "Metrics/audit/pixels/real_held_out_below"} <= result.scalars().keys()
    lines = result.table().splitlines()
    assert lines[0].split() == ["space", "hash", "d", "pictures", "median", "below", "n"]
    assert lines[-1] == result.verdict


def test_recombined_captions_are_new_and_made_of_known_words(many: PackedDataset) -> None:
    assert recombine(["red apple", "blue house", "sun"], ["red apple", "blue house", "sun", "Blue Apple"], 10) == ["red house"]
    prompts = choose_prompts(many, 50)
    assert {kind: len(texts) for kind, texts in prompts.items()} == {"train": 50, "held out": 42, "recombined": 50}
    words = {word for text in many.captions for word in text.split()}
    for text in prompts["recombined"]:
        assert text not in many.captions
        assert set(text.split()) <= words


def test_refusals(many: PackedDataset, pictures: Path) -> None:
    with pytest.raises(GanT2IError, match="was trained on the training pictures"):
        check_copies(many, "matcher")
    with pytest.raises(GanT2IError, match="at least 20 training pictures, and there are 10"):
        check_copies(load_dataset(pictures, 16, progress=False), "random")
