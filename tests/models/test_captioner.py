"""The captioner is a distribution over captions given the image, and no token depends on later ones."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from gan_t2i.models.captioner import PAD, Captioner, CaptionerConfig, coordinates
from gan_t2i.text.tiny import count_vocabulary

CAPTIONS = ["a red circle", "a blue square left of a red circle", "two rings"]
SIZE = CaptionerConfig(channel_base=128, channel_max=16, width=16, layers=2, heads=2, max_tokens=12, vocabulary_size=200)


def captioner(resolution: int = 16, **changes: int) -> Captioner:
    torch.manual_seed(0)
    config = SIZE.model_copy(update=changes)
    return Captioner(config, resolution=resolution, vocabulary=count_vocabulary(CAPTIONS, config.vocabulary_size))


def make_images(n: int, resolution: int = 16) -> Tensor:
    return torch.rand(n, 3, resolution, resolution, generator=torch.Generator().manual_seed(1)) * 2 - 1


def words(model: Captioner, captions: Sequence[str]) -> list[list[str]]:
    return [[model.vocabulary[number] for number in row] for row in model.tokenize(captions).tolist()]


def test_captions_become_tokens_with_a_start_and_an_end() -> None:
    model = captioner()
    assert words(model, ["a red circle", "rings"]) == [
        ["[CLS]", "a", "red", "circle", "[SEP]"],
        ["[CLS]", "rings", "[SEP]", "[PAD]", "[PAD]"],
    ]
    assert model.vocabulary[PAD] == "[PAD]"


def test_rare_words_are_spelled_and_long_captions_cut() -> None:
    model = captioner(max_tokens=4)
    assert words(model, ["leaf"]) == [["[CLS]", "l", "##e", "##a", "##f"]]
    assert model.tokenize(["red " * 30]).shape == (1, 5)
    assert model(make_images(1), model.tokenize(["red " * 30])).isfinite().all()


def test_the_probabilities_of_all_continuations_add_up_to_one() -> None:
    """A token that attended to itself, or to a later one, would be certain, and the sum be as large as the vocabulary."""
    model = captioner()
    prefix = model.tokenize(["a red"])[0, :3]  # [CLS] a red
    continuations = torch.stack([torch.cat([prefix, torch.tensor([word])]) for word in range(1, len(model.vocabulary))])
    with torch.no_grad():
        images = make_images(1).expand(len(continuations), -1, -1, -1)
        # mean over three tokens, of which the first two are the same for all
        joint = 3 * model(images, continuations)
        first = 2 * model(make_images(1), prefix[None])
    # [PAD] is never a target: its probability is missing from the sum
    total = (joint - first).exp().sum().item()
    assert 0.5 < total < 1


def test_a_token_depends_on_the_image_and_the_tokens_before_it() -> None:
    model = captioner()
    tokens = model.tokenize(["a blue square left of a red circle"])
    changed = tokens.clone()
    changed[0, -2] = model.tokenize(["rings"])[0, 1]  # the last word
    with torch.no_grad():
        shorter = [model(make_images(1), t[:, :-2]) for t in (tokens, changed)]
        other_image = model(-make_images(1), tokens)
        assert torch.equal(*shorter)
        assert not torch.allclose(model(make_images(1), tokens), model(make_images(1), changed))
        assert not torch.allclose(model(make_images(1), tokens), other_image)


def test_pairs_are_independent_and_padding_changes_nothing() -> None:
    model = captioner()
    tokens = model.tokenize(CAPTIONS)
    images = make_images(3)
    with torch.no_grad():
        together = model(images, tokens)
        alone = torch.cat([model(images[row : row + 1], model.tokenize([caption])) for row, caption in enumerate(CAPTIONS)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_larger_images_are_average_pooled() -> None:
    model = captioner(resolution=64, side=16)
    large = make_images(2, 16).repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    tokens = model.tokenize(CAPTIONS[:2])
    with torch.no_grad():
        torch.testing.assert_close(model(large, tokens), model(make_images(2, 16), tokens), rtol=1e-4, atol=1e-5)


def test_every_weight_and_every_pixel_gets_a_gradient() -> None:
    model = captioner()
    images = make_images(2).requires_grad_()
    model(images, model.tokenize(CAPTIONS[:2])).sum().backward()
    assert images.grad is not None
    assert (images.grad.abs().amax(dim=1) > 0).float().mean() > 0.9
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize(("column", "axis"), [(0, 1), (1, 0)])
def test_coordinates_distinguish_left_from_right_and_above_from_below(column: int, axis: int) -> None:
    line = coordinates(8)[:, column].reshape(8, 8).mean(dim=1 - axis)
    assert (line.diff() > 0).all()
