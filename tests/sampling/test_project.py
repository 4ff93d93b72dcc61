"""Pictures drawn by a model: nearer than the words alone, with what the autoencoder keeps beside it, and words where none are given."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gan_t2i.core.errors import UsageError
from gan_t2i.core.images import from_uint8, to_pictures, to_uint8
from gan_t2i.sampling.inversion import Inversion, read_picture
from gan_t2i.sampling.pipeline import Text2Image
from gan_t2i.sampling.project import guess_words, project


def test_the_projection_is_nearer_than_the_words_alone(shapes: Text2Image) -> None:
    prompt = "a red circle on a white background"
    [other] = shapes.generate("a small blue square on a yellow background", seeds=5)
    found = project(shapes, from_uint8(to_uint8([other])), prompt, seed=2, steps=8)
    assert list(found.parts) == ["words alone", "projected"]
    assert [found.parts["words alone"]] == shapes.generate(prompt, seeds=2)
    assert found.psnr["projected"] > found.psnr["words alone"] + 2
    assert found.picture == other
    assert found.redraw(shapes, prompt) == found.parts["projected"]
    assert found.redraw(shapes, "a red star on a white background") != found.parts["projected"]
    assert shapes.generate(prompt, seeds=2) == [found.parts["words alone"]]


def test_styles_belong_to_the_model_that_they_were_found_for(shapes: Text2Image, small: Callable[..., Text2Image]) -> None:
    found = project(small("style"), torch.zeros(1, 4, 16, 16), "a star", steps=0)
    with pytest.raises(UsageError, match="found for another model"):
        found.redraw(shapes, "a star")


def test_without_a_step_it_is_what_the_words_draw(shapes: Text2Image) -> None:
    found = project(shapes, torch.zeros(1, 3, 64, 64), "a star", steps=0)
    assert found.parts["projected"] == found.parts["words alone"]
    assert not found.offsets.any()


def test_in_latents_the_rebuilt_picture_stands_beside_it(small: Callable[..., Text2Image]) -> None:
    model = small("residual", latents=True)
    picture = torch.linspace(-1, 1, 64).expand(1, 4, 64, 64).contiguous()
    found = project(model, picture, "a star", steps=2)
    assert list(found.parts) == ["rebuilt", "words alone", "projected"]
    assert found.picture.mode == "RGBA"
    with torch.no_grad():
        assert to_pictures(model.generator.autoencoder.rebuild(picture)) == [found.parts["rebuilt"]]
    assert found.sheet().width > 4 * 192


def test_psnr_is_over_grey_and_ends_at_100(shapes: Text2Image) -> None:
    found = project(shapes, torch.zeros(1, 3, 64, 64), "a star", steps=0)
    grey, clear = (Image.new("RGBA", (64, 64), colour) for colour in ((128, 128, 128, 255), (0, 0, 0, 0)))
    lighter = Image.new("RGB", (64, 64), (128 + 51, 128, 128))
    shown = replace(found, picture=clear, parts={"same": grey, "lighter": lighter})
    assert shown.psnr == {"same": pytest.approx(100), "lighter": pytest.approx(10 * np.log10(3 * 25))}


def test_words_are_guessed_among_those_that_the_model_knows(shapes: Text2Image) -> None:
    assert shapes.info.card is not None
    card = replace(shapes.info.card, words=("star", "circle", "two"), styles=())
    plain = Text2Image(shapes.generator, shapes.encoder, replace(shapes.info, card=card))
    [circle] = plain.generate("circle")
    picture = from_uint8(to_uint8([circle]))
    assert guess_words(Inversion(plain, picture)) == "circle"
    assert project(plain, picture, steps=0).prompt == "circle"
    styled = Text2Image(shapes.generator, shapes.encoder, replace(shapes.info, card=replace(card, styles=("red", "blue"))))
    [blue] = styled.generate("star, blue style")
    assert guess_words(Inversion(styled, from_uint8(to_uint8([blue])))) == "star, blue style"


def test_a_model_that_lists_no_words_asks_for_them(shapes: Text2Image) -> None:
    silent = Text2Image(shapes.generator, shapes.encoder, replace(shapes.info, card=None))
    with pytest.raises(UsageError, match=r"does not list the words that it knows, so none can be guessed: say what the picture shows \(-p\)"):
        project(silent, torch.zeros(1, 3, 64, 64))
    with pytest.raises(UsageError, match="prompt 1 is empty"):
        project(shapes, torch.zeros(1, 3, 64, 64), " ")


@pytest.mark.slow
def test_the_packaged_model_finds_its_own_pictures_again(tmp_path: Path) -> None:
    model = Text2Image.load("pretrained:icons64", device="cpu")
    [apple] = model.generate("a red apple, twemoji style", seeds=5)
    path = tmp_path / "apple.png"
    apple.save(path)
    found = project(model, read_picture(path, model), "a green apple, noto style")
    assert found.psnr["words alone"] < 12
    assert found.psnr["projected"] > 30
