"""The matcher and R-precision, over generators whose worth is known."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

from gan_t2i.core.errors import GanT2IError
from gan_t2i.core.files import cache_dir
from gan_t2i.data.packing import PackedDataset, load_dataset
from gan_t2i.evaluation import retrieval as retrieval_suite
from gan_t2i.evaluation.matcher import MatcherConfig, are_own, info_nce, matcher_judge
from gan_t2i.evaluation.retrieval import RetrievalTask, prepare_retrieval, run_retrieval, split_pairs
from gan_t2i.text.encoder import build_encoder, interface_for

QUICK = MatcherConfig(channels=8, width=32, batch=64, max_kimg=16, check_steps=20, learning_rate=3e-3)
HUES = ("red", "green", "blue", "yellow", "purple", "black", "orange", "cyan")
PLACES = {"left": 4, "middle": 12, "right": 20}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    """A dot of eight colours over a bar of eight in three places: 192 captions, of which some are held out."""
    folder = tmp_path_factory.mktemp("dots")
    lines = []
    for top in HUES:
        for bottom in HUES:
            for place, x in PLACES.items():
                picture = Image.new("RGB", (32, 32), "white")
                draw = ImageDraw.Draw(picture)
                draw.ellipse((x, 2, x + 10, 12), fill=top)
                draw.rectangle((2, 18, 30, 29), fill=bottom)
                name = f"{top}-{bottom}-{place}.png"
                picture.save(folder / name)
                caption = f"{top} dot {place} over a {bottom} bar"
                lines.append(json.dumps({"file_name": name, "text": [caption, f"a {bottom} bar", caption.upper()]}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GAN_T2I_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        from gan_t2i.data.settings import DataSettings

        return load_dataset(folder, 16, DataSettings(holdout_fraction=0.2), progress=False)


@pytest.fixture(scope="module")
def encoder(dataset: PackedDataset) -> Any:
    params = {"width": 64, "layers": 1, "heads": 2, "max_tokens": 24}
    return build_encoder("tiny", params, interface_for("tiny", params, dataset.captions))


@pytest.fixture(scope="module")
def task(dataset: PackedDataset, encoder: Any, tmp_path_factory: pytest.TempPathFactory) -> RetrievalTask:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GAN_T2I_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        return prepare_retrieval(dataset, encoder, torch.device("cpu"), config=QUICK)


@pytest.fixture
def real(dataset: PackedDataset) -> Callable[[str], Image.Image]:
    """The real picture of a caption."""
    item_of = {dataset.captions[ids[0]]: item for item, ids in reversed(list(enumerate(dataset.caption_ids)))}
    return lambda caption: Image.fromarray(dataset.gather([item_of[caption]])[0].permute(1, 2, 0).numpy())


def test_a_generator_that_draws_the_real_pictures_scores_as_they_do(task: RetrievalTask, real: Callable[[str], Image.Image]) -> None:
    result = run_retrieval(lambda prompts, seeds: [real(p) for p in prompts for _ in seeds], task, seeds=2, candidates=20)
    assert result.candidates == 20
    for side in ("train", "heldout"):
        truth, generated = result.scores[f"real_{side}"], result.scores[f"generated_{side}"]
        # in other batches a picture's features have other last bits
        assert (generated.r1, generated.gap) == pytest.approx((truth.r1, truth.gap), abs=1e-5)
        assert generated.count == 2 * truth.count
        assert truth.r1 > 0.3  # six times chance, on captions that the matcher has not seen
        assert truth.gap > 0.2


def test_pictures_of_other_captions_fall_to_chance(task: RetrievalTask, real: Callable[[str], Image.Image]) -> None:
    for side in (task.train, task.heldout):
        assert len(side) > 20
    order = [task.captions[number] for side in (task.train, task.heldout) for number in side.captions[:, 0].tolist()]
    other = {caption: order[index - 7] for index, caption in enumerate(order)}
    result = run_retrieval(lambda prompts, seeds: [real(other[p]) for p in prompts for _ in seeds], task, candidates=20)
    for side in ("train", "heldout"):
        assert result.scores[f"generated_{side}"].r1 < 0.12 < result.scores[f"real_{side}"].r1
        assert abs(result.scores[f"generated_{side}"].gap) < 0.15


@pytest.mark.parametrize("shift", [0, 7])
def test_recombined_captions_are_ranked_among_each_other(task: RetrievalTask, real: Callable[[str], Image.Image], shift: int) -> None:
    """Captions of the training side, which have pictures, take the place of recombined ones; with a shift, each gets the picture of another."""
    numbers = task.train.captions[:, 0]
    texts = [task.captions[number] for number in numbers.tolist()]
    captions, pooled = [*task.captions, *texts], torch.cat([task.pooled, task.pooled[numbers]])
    task = replace(task, captions=captions, pooled=pooled, recombined=torch.arange(len(task.captions), len(captions)))
    picture_of = {text: real(texts[place - shift]) for place, text in enumerate(texts)}
    picture_of |= {task.captions[number]: real(task.captions[number]) for number in task.heldout.captions[:, 0].tolist()}
    result = run_retrieval(lambda prompts, seeds: [picture_of[p] for p in prompts for _ in seeds], task, candidates=20)
    score = result.scores["generated_recombined"]
    assert score.count == len(texts)
    assert (score.r1 > 0.3) if shift == 0 else (score.r1 < 0.12)
    few = run_retrieval(lambda prompts, seeds: [picture_of[p] for p in prompts for _ in seeds], task, limit=10, candidates=20)
    assert "generated_recombined" not in few.scores


def test_recombined_captions_come_from_those_of_training(dataset: PackedDataset, encoder: Any, task: RetrievalTask) -> None:
    assert not len(task.recombined)  # every combination of these words is some picture's caption
    fewer = copy.copy(dataset)
    fewer.captions = [f"{caption} {number}" for number, caption in enumerate(dataset.captions)]
    found = prepare_retrieval(fewer, encoder, torch.device("cpu"), config=QUICK)
    recombined = [found.captions[caption] for caption in found.recombined.tolist()]
    assert len(recombined) == retrieval_suite.LIMIT
    assert not {*recombined} & {*fewer.captions}
    heldout = {fewer.captions[fewer.caption_ids[item][0]].split()[-1] for item in fewer.heldout.tolist()}
    assert not {text.split()[-1] for text in recombined} & heldout
    torch.testing.assert_close(found.pooled[found.recombined], encoder.encode(recombined).pooled)


def test_a_judge_ranks_the_picture_of_the_prompt_first(task: RetrievalTask, encoder: Any, real: Callable[[str], Image.Image]) -> None:
    judge = matcher_judge(task.matcher, encoder)
    prompts = [task.captions[number] for side in (task.train, task.heldout) for number in side.captions[:20, 0].tolist()]
    first = 0
    for at, prompt in enumerate(prompts):
        scores = judge([real(prompts[at - shift]) for shift in range(8)], prompt)
        first += max(scores) == scores[0]
    assert first > 0.75 * len(prompts)  # six times chance


def test_every_caption_is_requested_once_with_its_own_seeds(task: RetrievalTask) -> None:
    requests: list[tuple[str, int]] = []

    def generate(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        requests.extend((prompt, seed) for prompt in prompts for seed in seeds)
        return [Image.new("RGB", (16, 16)) for _ in prompts for _ in seeds]

    result = run_retrieval(generate, task, seeds=2, limit=3, candidates=10)
    captions = [task.captions[number] for side in (task.train, task.heldout) for number in side.captions[:3, 0].tolist()]
    assert requests == [(caption, 2 * (index % 3) + seed) for index, caption in enumerate(captions) for seed in range(2)]
    assert len(set(captions)) == 6
    assert result.changed == {"limit": 3, "seeds": 2}
    assert json.loads(json.dumps(result.to_json()))["scores"]["real_train"]["chance"] == 0.1
    assert set(result.scalars()) == {
        f"Metrics/retrieval/{kind}_{side}_{what}" for kind in ("real", "generated") for side in ("train", "heldout") for what in ("r1", "gap")
    }


def test_sides_share_no_caption_and_case_is_ignored(dataset: PackedDataset) -> None:
    shown, validation, heldout = split_pairs(dataset)
    texts = [
        {dataset.captions[number].casefold() for row in side.captions.tolist() for number in row if number >= 0}
        for side in (shown, validation, heldout)
    ]
    assert not texts[0] & (texts[1] | texts[2])
    firsts = [side.captions[:, 0].tolist() for side in (validation, heldout)]
    assert not set(firsts[0]) & set(firsts[1])
    assert all(len(set(ids)) == len(ids) for ids in firsts)
    assert len(validation) == (len(dataset.train)) // 4  # the least that is wanted is more than the most that is allowed
    assert not {text for side in texts for text in side} - {caption.casefold() for caption in dataset.captions}


def test_a_picture_s_other_captions_do_not_stand_beside_the_true_one() -> None:
    """A cosine of 1 with another caption of its own, which would win, and of -1 with a wrong one."""
    pool, captions = torch.tensor([3, 5, 8]), torch.tensor([[5, 8], [3, -1]])
    cosines = torch.tensor([[-1.0, 0.5, 1.0], [0.5, -1.0, 1.0]])
    score = retrieval_suite._score(cosines, captions, pool, candidates=2)
    assert score.count == 2
    assert score.r1 == pytest.approx((1 + _share(cosines[1], 3)) / 2, abs=1e-6)


def _share(row: torch.Tensor, seeds: int) -> float:
    """The second picture wins where the caption beside its own is the one with -1."""
    won = 0
    for repeat in range(retrieval_suite.REPEATS):
        keys = torch.rand((2, 3), generator=retrieval_suite.seeded_rng("retrieval", "candidates", repeat))[1]
        won += int(row[1 + int(keys[1:].argmax())] < row[0])
    return won / retrieval_suite.REPEATS


def test_the_matcher_is_made_once_and_damaged_weights_are_made_again(
    task: RetrievalTask, dataset: PackedDataset, encoder: Any, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    again = prepare_retrieval(dataset, encoder, torch.device("cpu"), config=QUICK)
    assert "trained before" in said[-1]
    weights = task.matcher.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in again.matcher.state_dict().items())
    for path in (cache_dir() / "matchers").glob("*.safetensors"):  # other tests keep theirs there too
        path.write_bytes(path.read_bytes()[:-100])
    torch.rand(3)  # the global random state says nothing
    made = prepare_retrieval(dataset, encoder, torch.device("cpu"), config=QUICK)
    assert any("trained again" in line for line in said)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in made.matcher.state_dict().items())


def test_info_nce() -> None:
    none = torch.zeros(4, 4, dtype=torch.bool)
    assert info_nce(torch.zeros(4, 4), none).item() == pytest.approx(torch.tensor(4.0).log().item())
    twin = none.clone()
    twin[0, 1] = twin[1, 0] = True
    cosines = torch.eye(4) * 20
    cosines[0, 1] = cosines[1, 0] = 40.0
    assert info_nce(cosines, twin).item() < 1e-6 < info_nce(cosines, none).item()
    assert are_own(torch.tensor([[1, 2], [3, -1]]), torch.tensor([2, 3, 4])).tolist() == [[True, False, False], [False, True, False]]


def test_refusals(task: RetrievalTask, pictures: Path, encoder: Any) -> None:
    with pytest.raises(ValueError, match="at least one seed and two captions"):
        run_retrieval(lambda prompts, seeds: [], task, limit=1)
    with pytest.raises(GanT2IError, match="two of each are needed"):
        prepare_retrieval(load_dataset(Path(_one_pair(pictures)), 16, progress=False), encoder, torch.device("cpu"))


def _one_pair(pictures: Path) -> str:
    folder = pictures.parent / "one-pair"
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (16, 16)).save(folder / "a.png")
    (folder / "a.txt").write_text("black")
    return str(folder)


def test_the_matcher_imports_no_generator() -> None:
    code = "import sys, gan_t2i.evaluation.matcher; print(*(name for name in sys.modules if name.startswith('gan_t2i.models')))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
