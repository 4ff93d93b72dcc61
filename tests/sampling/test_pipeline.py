"""From prompts to pictures: what a picture depends on, and what is refused."""

import json
import pydoc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import gan_t2i
from gan_t2i import Text2Image, generate_image
from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.core.images import sheet
from gan_t2i.runs import RunFolder
from gan_t2i.training.config import TrainConfig
from gan_t2i.training.grid import grid_captions
from gan_t2i.training.session import prepare


@pytest.fixture
def model(trained: RunFolder) -> Text2Image:
    return Text2Image.load(trained.path, device="cpu")


def same(left: Image.Image, right: Image.Image) -> bool:
    return np.array_equal(np.asarray(left), np.asarray(right))


def distance(left: Image.Image, right: Image.Image) -> int:
    """Largest difference of a colour value, of 255."""
    return int(np.abs(np.asarray(left).astype(int) - np.asarray(right).astype(int)).max())


def test_a_picture_depends_on_its_prompt_and_seed_alone(model: Text2Image) -> None:
    alone = model.generate("a red circle", seeds=7)
    assert [(picture.mode, picture.size) for picture in alone] == [("RGB", (16, 16))]
    prompts = ["a blue square on white", "a red circle", "green"]
    many = model.generate(prompts, seeds=[3, 7, 0])
    assert len(many) == 9
    assert same(many[4], alone[0])
    for row, prompt in enumerate(prompts):
        for column, seed in enumerate([3, 7, 0]):
            assert same(many[3 * row + column], model.generate(prompt, seeds=[seed])[0])
    assert all(not same(many[i], many[j]) for i in range(9) for j in range(i))


def test_truncation(model: Text2Image) -> None:
    full, half, none = (model.generate("a red circle", seeds=[0, 1], truncation_psi=psi) for psi in (1, 0.5, 0))
    assert same(*none)
    assert not same(none[0], model.generate("a blue square", truncation_psi=0)[0])  # the prompt is not truncated
    assert not same(full[0], half[0])
    spread = [np.abs(np.asarray(pair[0], float) - np.asarray(pair[1], float)).mean() for pair in (none, half, full)]
    assert spread[0] < spread[1] < spread[2]


def test_it_draws_what_training_drew(model: Text2Image, trained: RunFolder, small_config: Callable[..., Any]) -> None:
    """The last grid of the run, drawn in batches, against the snapshot of the same moment."""
    session = prepare(TrainConfig.parse(small_config()))
    captions = grid_captions(session)
    assert [label.endswith("(held out)") for _, label in captions] == [False, False, True, True]
    rows = [model.generate(session.dataset.captions[caption_id], seeds=[0, 1]) for caption_id, _ in captions]
    labels = [label for _, label in captions]
    drawn = Image.open(trained.grid(40))
    assert distance(sheet(rows, labels), drawn) <= 2
    other = [model.generate(session.dataset.captions[caption_id], seeds=[1, 0]) for caption_id, _ in captions]
    assert distance(sheet(other, labels), drawn) > 10


def test_a_long_prompt_is_reported(model: Text2Image, said: list[str]) -> None:
    prompt = "red circle " * 20
    pictures = model.generate([prompt, "a red circle"])
    assert said == [f"prompt {prompt[:39] + '…'!r}: it has 42 tokens; the model reads 16, the rest is left out"]
    assert same(model.generate(prompt)[0], pictures[0])


@pytest.mark.parametrize("prompts", ["", "  \n", ["a red circle", " "]])
def test_an_empty_prompt_is_refused(model: Text2Image, prompts: str | list[str]) -> None:
    with pytest.raises(UsageError, match=r"prompt \d is empty: say what to draw"):
        model.generate(prompts)


@pytest.mark.parametrize("prompt", ["红色的圆", "\N{DOG FACE}", "\x00", "a\tred\ncircle", "é" * 3, "<script>", "$(rm)"])
def test_any_words_can_be_drawn(model: Text2Image, prompt: str) -> None:
    assert model.generate(prompt)[0].size == (16, 16)


def test_no_prompt_no_picture(model: Text2Image) -> None:
    assert model.generate([]) == []
    assert model.generate("a red circle", seeds=[]) == []


def test_pictures_come_one_by_one(model: Text2Image, monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    expected = model.generate(["red", "blue"], seeds=range(2))
    drawn: list[Any] = []
    forward = model.generator.forward
    monkeypatch.setattr(model.generator, "forward", lambda *inputs: drawn.append(inputs) or forward(*inputs))
    said.clear()
    prompts = ["red", "blue", "red circle " * 20]
    pictures = model.stream((prompt for prompt in prompts), seeds=range(2))
    assert not drawn
    assert not said
    for number, picture in enumerate(expected, 1):
        assert same(next(pictures), picture)
        assert len(drawn) == number
        assert len(said) == 1  # of the last prompt, before anything is drawn
    assert len(list(pictures)) == 2
    assert len(said) == 1
    assert next(model.stream("red", seeds=range(10**15))) == expected[0]
    with pytest.raises(UsageError, match="prompt 2 is empty"):
        model.stream(["red", ""])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": True}, "seed True is not an integer"),
        ({"seeds": None}, "seeds must be one integer or several"),
        ({"seeds": "0-3"}, "not '0-3'"),
        ({"seeds": [0, 1.0]}, "seed 1.0 is not an integer"),
        ({"truncation_psi": float("nan")}, "truncation_psi = nan is not a finite number"),
        ({"truncation_psi": None}, "truncation_psi = None is not a finite number"),
        ({"truncation_psi": "0.5"}, "truncation_psi = '0.5' is not a finite number"),
        ({"prompts": ["red", 3]}, "prompt 2 is 3: a prompt is text"),
        ({"prompts": None}, "prompts must be one text or several"),
    ],
)
def test_what_cannot_be_drawn_is_refused(model: Text2Image, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        model.generate(**{"prompts": "red", **arguments})


def test_integers_of_other_libraries_are_the_same_seeds(model: Text2Image) -> None:
    expected = model.generate("red", seeds=[1, 2])
    for seeds in (np.array([1, 2]), torch.tensor([1, 2]), (np.int64(1), torch.tensor(2)), range(1, 3)):
        assert model.generate("red", seeds=seeds, truncation_psi=np.float32(1)) == expected
    assert model.generate("red", seeds=np.int64(1)) == model.generate("red", seeds=torch.tensor(1)) == expected[:1]
    for seed in ([1, 2], 1.0, True):
        with pytest.raises(UsageError, match="is not an integer"):
            generate_image("red", seed=seed)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="a prompt is text"):
        generate_image(["red", "blue"])  # type: ignore[arg-type]


def test_load_by_run_by_file_and_latest(model: Text2Image, trained: RunFolder, monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    expected = model.generate("a red circle")[0]
    assert same(Text2Image.load(str(trained.snapshot(40))).generate("a red circle")[0], expected)
    assert said[0].startswith(f"model: {trained.snapshot(40)} (style, 16 px, 40 images, data ")
    assert said[1].startswith("text encoder: tiny")
    older = Text2Image.load(trained.snapshot(20))
    assert older.info.nimg == 20
    assert not same(older.generate("a red circle")[0], expected)
    monkeypatch.chdir(trained.path.parent.parent)
    assert same(Text2Image.load("latest").generate("a red circle")[0], expected)
    assert same(generate_image("a red circle", model="latest"), expected)
    assert same(generate_image("a red circle", seed=4, model=trained.snapshot(20)), older.generate("a red circle", seeds=4)[0])
    assert not older.generator.training


def test_latest_skips_runs_without_a_snapshot(trained: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="there is no run with a snapshot in runs/: train one first"):
        Text2Image.load("latest")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "00000-done").symlink_to(trained.path)
    (tmp_path / "runs" / "00001-begun" / "snapshots").mkdir(parents=True)
    (tmp_path / "runs" / "00001-begun" / "config.yaml").touch()
    assert Text2Image.load("latest").info.nimg == 40
    with pytest.raises(UsageError, match="has no snapshot yet"):
        Text2Image.load("runs/00001-begun")


def test_another_encoder_is_refused(trained: RunFolder, tmp_path: Path) -> None:
    with safetensors.safe_open(trained.snapshot(40), framework="pt") as file:
        metadata = json.loads(file.metadata()["gan_t2i"])
    right = metadata["encoder"]["weights_hash"]
    metadata["encoder"]["built"]["params"]["seed"] = 1  # other random weights than the generator was trained with
    save_file(load_file(trained.snapshot(40)), tmp_path / "other.safetensors", metadata={"gan_t2i": json.dumps(metadata)})
    with pytest.raises(GanT2IError, match=f"trained with text encoder weights of sha256 {right}, but .* has ") as error:
        Text2Image.load(tmp_path / "other.safetensors")
    assert not isinstance(error.value, UsageError)


def test_sampling_imports_nothing_from_training(modules_of_a_drawing: set[str]) -> None:
    unwanted = ("gan_t2i.training", "gan_t2i.data", "gan_t2i.cli", "tensorboard")
    assert [name for name in modules_of_a_drawing if name.startswith(unwanted)] == []


def test_it_moves_between_devices(model: Text2Image) -> None:
    assert model.to("cpu") is model
    assert model.to(torch.device("cpu")).device == torch.device("cpu")
    with pytest.raises(gan_t2i.UsageError, match="device 'cuda:99' cannot be used here"):
        model.to("cuda:99")


def test_what_the_package_offers() -> None:
    assert {"Text2Image", "generate_image", "GanT2IError", "UsageError", "__version__"} <= set(gan_t2i.__all__)
    assert (gan_t2i.GanT2IError, gan_t2i.UsageError) == (GanT2IError, UsageError)
    for thing in (
        gan_t2i,
        Text2Image,
        Text2Image.load,
        Text2Image.generate,
        Text2Image.stream,
        Text2Image.to,
        generate_image,
        GanT2IError,
        UsageError,
    ):
        assert pydoc.render_doc(thing)
        assert thing.__doc__
    with pytest.raises(AttributeError, match="draw"):
        gan_t2i.draw  # noqa: B018
