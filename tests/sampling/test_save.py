"""A folder is filled picture by picture: what is there stays, what is missing is drawn, and nothing is replaced unasked."""

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gan_t2i import Text2Image
from gan_t2i.core.images import save_picture
from gan_t2i.runs import RunFolder
from gan_t2i.sampling import save
from gan_t2i.sampling.save import file_names, save_all, stems


@pytest.fixture
def model(trained: RunFolder) -> Text2Image:
    return Text2Image.load(trained.path, device="cpu")


def fill(model: Text2Image, folder: Path, *prompts: str, seeds: Any = (0,), psi: float = 1.0, **options: Any) -> list[tuple[str, bool]]:
    """Names of the files, and True for those that were drawn now."""
    saved = list(save_all(model, prompts, seeds, psi, folder, **options))
    assert [(each.prompt, each.seed) for each in saved] == [(prompt, seed) for prompt in prompts for seed in seeds]
    assert all(each.path.is_file() for each in saved)
    return [(each.path.name, each.drawn) for each in saved]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_each_picture_is_written_before_the_next_is_drawn(model: Text2Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[Image.Image]] = []

    def watch(picture: Image.Image, path: Path, origin: str) -> None:
        alive.append(weakref.ref(picture))
        save_picture(picture, path, origin)

    monkeypatch.setattr(save, "save_picture", watch)
    prompts = ["red", "blue", "green"]
    for number, saved in enumerate(save_all(model, prompts, [0, 1], 1.0, tmp_path), 1):
        assert len(list(tmp_path.iterdir())) == number
        assert saved.path.is_file()
        assert sum(reference() is not None for reference in alive) <= 1  # memory does not grow
    assert len(alive) == 6


def test_a_stopped_call_goes_on(model: Text2Image, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    fill(model, whole, "red", "blue", seeds=[2, 0])
    pictures: Iterator[Any] = save_all(model, ["red", "blue"], [2, 0], 1.0, stopped)
    assert [next(pictures).drawn for _ in range(3)] == [True] * 3
    names = ["red-seed2.png", "red-seed0.png", "blue-seed2.png", "blue-seed0.png"]
    assert fill(model, stopped, "red", "blue", seeds=[2, 0]) == list(zip(names, [False] * 3 + [True], strict=True))
    assert content(stopped) == content(whole)
    assert fill(model, stopped, "blue", "green", seeds=[0]) == [("blue-seed0.png", False), ("green-seed0.png", True)]


def test_a_file_of_another_picture_stays(model: Text2Image, trained: RunFolder, tmp_path: Path, said: list[str]) -> None:
    fill(model, tmp_path, "a red heart")
    (tmp_path / "blue-seed0.png").write_text("mine")
    Image.new("RGB", (8, 8)).save(tmp_path / "green-seed0.png")
    before = content(tmp_path)
    assert b"heart" not in before["a-red-heart-seed0.png"]
    older = Text2Image.load(trained.snapshot(20), device="cpu")
    said.clear()
    for changed in (
        lambda: fill(model, tmp_path, "a RED/heart?"),
        lambda: fill(model, tmp_path, "a red heart", psi=0.5),
        lambda: fill(older, tmp_path, "a red heart"),
    ):
        [(name, drawn)] = changed()
        assert drawn
        assert name not in before
        assert changed() == [(name, False)]
        before = content(tmp_path)
    assert (
        said[0]
        == f"{tmp_path / 'a-red-heart-seed0.png'} holds something else and stays; the new picture gets a number (--overwrite replaces it)"
    )
    assert sorted(before)[:4] == [f"a-red-heart{number}-seed0.png" for number in ("", ".2", ".3", ".4")]
    assert fill(model, tmp_path, "blue", "green") == [("blue.2-seed0.png", True), ("green.2-seed0.png", True)]
    assert before.items() <= content(tmp_path).items()


def test_the_same_snapshot_elsewhere_is_the_same(model: Text2Image, trained: RunFolder, tmp_path: Path) -> None:
    fill(model, tmp_path, "red")
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(trained.snapshot(40).read_bytes())
    assert fill(Text2Image.load(copy), tmp_path, "red") == [("red-seed0.png", False)]


def test_the_seeds_of_a_prompt_share_its_number(model: Text2Image, tmp_path: Path) -> None:
    fill(model, tmp_path, "red", seeds=[1])
    assert fill(model, tmp_path, "Red!", seeds=[0, 1]) == [("red.2-seed0.png", True), ("red.2-seed1.png", True)]
    assert fill(model, tmp_path, "red", "Red!", "red", seeds=[1]) == [
        ("red-seed1.png", False),
        ("red.2-seed1.png", False),
        ("red.3-seed1.png", True),
    ]


def test_overwriting_replaces(model: Text2Image, tmp_path: Path) -> None:
    fill(model, tmp_path, "red")
    before = content(tmp_path)
    assert fill(model, tmp_path, "red", overwrite=True) == [("red-seed0.png", True)]
    assert content(tmp_path) == before
    assert fill(model, tmp_path, "RED", psi=0.5, overwrite=True) == [("red-seed0.png", True)]
    assert content(tmp_path).keys() == before.keys()
    assert content(tmp_path) != before


def test_naming_is_linear() -> None:
    asked: list[str] = []

    def is_free(stem: str, prompt: str) -> bool:
        asked.append(stem)
        return len(asked) > 500

    assert list(stems(["red"] * 500, is_free))[::499] == ["red.501", "red.1000"]
    assert len(asked) == len(set(asked)) == 1000
    assert file_names(["red"] * 20000, [0])[-1] == "red.20000-seed0.png"


def test_what_prompts_share_is_said_once(model: Text2Image, tmp_path: Path, said: list[str]) -> None:
    list(save_all(model, ["red circle " * 20, "blue circle " * 20], [0], 1.0, tmp_path))
    assert [line.partition(": ")[0] for line in said] == [f"prompt {('red circle ' * 20)[:39] + '…'!r} and 1 more"]
