"""The benchmark of held-out cells, over generators whose worth is known."""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from gan_t2i.core.errors import GanT2IError
from gan_t2i.core.images import from_uint8
from gan_t2i.data.packing import PackedDataset
from gan_t2i.evaluation.cells import CellsResult, Drawings, Figure, run_cells
from gan_t2i.evaluation.features import FeatureSpace, open_space, pixels
from gan_t2i.evaluation.matcher import Pairs
from gan_t2i.evaluation.retrieval import RetrievalTask
from gan_t2i.evaluation.styles import prepare_judge

CPU = torch.device("cpu")
Draw = Callable[[str, str, int], Image.Image]


@pytest.fixture(scope="module")
def dataset(cell_pictures: Path, packed: Callable[[Path], PackedDataset]) -> PackedDataset:
    return packed(cell_pictures)


@pytest.fixture(scope="module")
def real(dataset: PackedDataset) -> Callable[[str, str], Image.Image]:
    """The drawing of a thing in a style."""
    items = {(extra["thing"], extra["style"]): item for item, extra in enumerate(dataset.extras)}
    return lambda thing, style: Image.fromarray(dataset.gather([items[thing, style]])[0].permute(1, 2, 0).numpy())


class PerfectMatcher(nn.Module):
    """Takes the first picture of a caption for its vector."""

    def similarity(self, images: Iterable[Tensor], pooled: Tensor) -> Tensor:
        return -torch.cdist(torch.cat([from_uint8(part).flatten(1) for part in images]), pooled)


def task_of(dataset: PackedDataset) -> RetrievalTask:
    first = [next(item for item, ids in enumerate(dataset.caption_ids) if number in ids) for number in range(len(dataset.captions))]
    pooled = from_uint8(dataset.gather(first)).flatten(1)
    unused = Pairs(dataset.gather, torch.zeros(3, 1, dtype=torch.int64))
    return RetrievalTask(PerfectMatcher(), dataset.captions, pooled, unused, unused, torch.arange(3))  # type: ignore[arg-type]


def run(dataset: PackedDataset, draw: Draw, spaces: Sequence[FeatureSpace] = (pixels(16),), **settings: int) -> CellsResult:
    """`draw` takes the thing, the style that is asked for or "", and the seed."""

    def generate(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        asked = [(f"t{prompt.split()[0].removeprefix('item')}", prompt.partition(" in ")[2]) for prompt in prompts]
        return [draw(thing, style, seed) for thing, style in asked for seed in seeds]

    return run_cells(generate, dataset, spaces, CPU, lambda: task_of(dataset), **settings)


def figures(result: CellsResult) -> dict[tuple[str, str], Figure]:
    return {(figure.kind, figure.name): figure for figure in result.figures}


OTHER = {"red": "blue", "blue": "red"}


def test_the_true_drawings_score_one(dataset: PackedDataset, real: Callable[[str, str], Image.Image]) -> None:
    found = figures(run(dataset, lambda thing, style, seed: real(thing, style or ("red", "blue")[seed]), seeds=2))
    assert {key: (figure.generated, figure.count) for key, figure in found.items() if figure.name != "diversity"} == {
        ("cell", "r1"): (1, 10),
        ("cell", "style"): (1, 10),
        ("thing", "r1"): (1, 4),
        ("thing", "style"): (1, 4),
        ("thing", "caption_r1"): (1, 4),
    }
    assert found["cell", "style"].real == found["thing", "style"].real == found["thing", "caption_r1"].real == 1
    assert [found["cell", name].chance for name in ("r1", "style")] == [pytest.approx(1 / 30), 0.5]
    diversity = found["train", "diversity"]
    assert diversity.generated == pytest.approx(diversity.real)  # two seeds draw what the two styles show
    assert diversity.generated > 0.3
    assert diversity.count == 18  # things that both styles show in training


def test_the_other_style_s_drawings_score_as_the_real_ones_do(dataset: PackedDataset, real: Callable[[str, str], Image.Image]) -> None:
    space = open_space("random", CPU, lambda: pytest.fail("no matcher is needed"))
    found = figures(run(dataset, lambda thing, style, seed: real(thing, OTHER.get(style, "red")), (space,), seeds=2))
    for kind in ("cell", "thing"):
        assert found[kind, "r1"].generated == found[kind, "r1"].real
        assert found[kind, "style"].generated == 0
    assert 1 / 30 < found["cell", "r1"].real < 1  # another colour is not quite the same picture
    assert found["thing", "caption_r1"].generated == 0
    assert found["train", "diversity"].generated == pytest.approx(0, abs=1e-6)


def test_the_drawings_of_random_things_score_about_chance(dataset: PackedDataset, real: Callable[[str, str], Image.Image]) -> None:
    def draw(thing: str, style: str, seed: int) -> Image.Image:
        return real(f"t{torch.randint(30, (), generator=torch.Generator().manual_seed(seed))}", style or "red")

    r1 = figures(run(dataset, draw, seeds=12))["cell", "r1"]
    assert r1.generated == pytest.approx(1 / 30, abs=0.05)
    assert 0 < (r1.error or 0) < 0.05


def test_candidates_are_of_the_same_style_and_of_other_things(dataset: PackedDataset) -> None:
    drawings = Drawings(dataset)
    [item, *others] = drawings.candidates(20, torch.Generator())
    assert item == 20
    assert len(set(others)) == 29
    assert {drawings.drawings[other].style for other in others} == {drawings.drawings[20].style}
    assert drawings.of_other_styles(20) == [21]
    captions = [caption for caption, _ in drawings.without_style()]
    assert all(re.fullmatch(r"item\d+", caption) for caption in captions)


def test_settings_files_and_sheet(dataset: PackedDataset, real: Callable[[str, str], Image.Image]) -> None:
    requests: list[tuple[str, str, int]] = []

    def draw(thing: str, style: str, seed: int) -> Image.Image:
        requests.append((thing, style, seed))
        return real(thing, style or "red")

    result = run(dataset, draw, limit=3, seeds=2)
    assert [seed for _, _, seed in requests[:6]] == [0, 1, 2, 3, 4, 5]  # every drawing has seeds of its own
    assert result.changed == {"features": "pixels", "limit": 3, "seeds": 2}
    assert [len(pictures) for _, pictures in result.rows] == [3] * 6
    for caption, pictures in result.rows:
        assert caption.endswith((" in red", " in blue"))
        assert pictures[0].tobytes() == pictures[-1].tobytes()  # drawn, and true
    assert result.sheet().width > 3 * 96
    assert json.loads(json.dumps(result.to_json()))["figures"][0]["name"] == "r1"
    assert result.scalars()["Metrics/cells/pixels/cell_r1"] == 1
    assert len(result.table().splitlines()) == 1 + len(result.figures)


def test_the_judge_knows_a_style_in_another_tone_and_is_kept(dataset: PackedDataset, said: list[str]) -> None:
    train = dataset.train.tolist()
    labels = [["blue", "red"].index(dataset.extras[item]["style"]) for item in train]
    judge = prepare_judge(dataset, train, labels, CPU)
    pictures = dataset.gather(dataset.heldout)
    own = torch.tensor([["blue", "red"].index(dataset.extras[item]["style"]) for item in dataset.heldout.tolist()])
    assert torch.equal(judge.embed(pictures).argmax(dim=1), own)
    assert torch.equal(judge.embed((pictures * 0.95).to(torch.uint8)).argmax(dim=1), own)
    again = prepare_judge(dataset, train, labels, CPU)
    assert again.sha256 == judge.sha256
    assert "fitted before" in said[-1]
    assert prepare_judge(dataset, train, [1 - label for label in labels], CPU).sha256 != judge.sha256


def test_refusals_and_what_is_left_out(dataset: PackedDataset, many: PackedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def blank(thing: str, style: str, seed: int) -> Image.Image:
        return Image.new("RGB", (16, 16))

    with pytest.raises(GanT2IError, match=r"needs pictures with the columns style, thing and heldout.* have none"):
        run(many, blank)
    no_style = [extra if extra["heldout"] else {} for extra in dataset.extras]
    with monkeypatch.context() as patch:
        patch.setattr(dataset, "extras", no_style)
        with pytest.raises(GanT2IError, match="have none"):
            run(dataset, blank)
    with pytest.raises(ValueError, match="at least two of each"):
        run(dataset, blank, seeds=1)
    odd = [{**extra, "heldout": "", "thing": ["no text"]} if extra["heldout"] == "thing" else extra for extra in dataset.extras]
    monkeypatch.setattr(dataset, "extras", odd)
    monkeypatch.setattr(dataset, "caption_ids", [ids[:1] for ids in dataset.caption_ids])
    result = run(dataset, blank, seeds=2)
    assert [(figure.kind, figure.name) for figure in result.figures] == [("cell", "r1"), ("cell", "style")]
    assert [note.partition(":")[0] for note in result.notes] == ["diversity", "held-out things"]
