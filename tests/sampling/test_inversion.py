"""The search for styles: nearer with each registered generator, the same bits each time, and nothing left behind in the model."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.models.base import Generator
from gan_t2i.sampling.inversion import Inversion, mapped_generator, moved, read_picture, styled_blocks
from gan_t2i.sampling.pipeline import Text2Image

Small = Callable[..., Text2Image]


def ramp(channels: int, side: int) -> Tensor:
    return torch.linspace(-1, 1, side).expand(1, channels, side, side).contiguous()


def searched(model: Text2Image, picture: Tensor, steps: int = 10, penalty: float = 0.0) -> Inversion:
    search = Inversion(model, picture, 3)
    search.begin("a red circle", penalty)
    for _ in range(steps):
        search.step()
    return search


def distance(search: Inversion, prompt: str = "a red circle") -> float:
    return (search.draw(prompt) - search.wanted).square().mean().item()


@pytest.mark.parametrize("name", ["residual", "style", "transformer"])
def test_it_comes_nearer_with_the_same_bits_and_leaves_the_model_as_it_was(small: Small, name: str) -> None:
    model = small(name)
    before = Inversion(model, ramp(4, 16), 3)
    drawn = before.draw("a red circle")
    search, again = searched(model, ramp(4, 16)), searched(model, ramp(4, 16))
    assert search.best is not None
    assert search.best.shape == (1 + len(styled_blocks(model.generator)), 32)
    assert len(search.best) > 2
    assert search.best.ne(0).any(dim=1).all()  # each block has an offset of its own
    assert distance(search) < 0.8 * distance(before)
    assert distance(search) == pytest.approx(search.least, rel=1e-4)
    assert again.best is not None
    assert torch.equal(search.best, again.best)
    assert torch.equal(before.draw("a red circle"), drawn)


def test_in_latents_it_is_measured_there(small: Small) -> None:
    model = small("residual", latents=True)
    before, search = Inversion(model, ramp(4, 64), 3), searched(model, ramp(4, 64))
    assert search.wanted.shape == (1, 4, 16, 16)
    assert distance(search) < 0.9 * distance(before)
    drawn = search.draw("a red circle", "a star")
    assert search.decode(drawn).shape == (2, 4, 64, 64)
    torch.testing.assert_close(drawn[1:], search.draw("a star"), atol=1e-5, rtol=1e-4)


def test_a_penalty_keeps_offsets_small(small: Small) -> None:
    model = small("residual")
    searches = [searched(model, ramp(4, 16), penalty=penalty) for penalty in (0.0, 0.01, 1.0)]
    sizes = [search.best.square().mean().item() for search in searches if search.best is not None]
    assert sizes[0] > 1.5 * sizes[1]
    assert sizes[1] > 1.5 * sizes[2] > 0


def test_offsets_reach_the_styles_that_they_belong_to(small: Small) -> None:
    model = small("residual")
    G = model.generator
    offsets = torch.arange(1.0, 2 + len(styled_blocks(G)))[:, None].expand(-1, 32)
    styles: list[Tensor] = []
    text, z = model.encoder.encode(["a red circle"]), torch.ones(1, G.z_width)
    with torch.no_grad():
        w = G.mapping(z, G.text_head(text).sentence)
        plain = G(z, text)
        with moved(G, offsets):
            handles = [block.register_forward_pre_hook(lambda module, inputs: styles.append(inputs[1])) for block in styled_blocks(G)]
            G(z, text)
        for handle in handles:
            handle.remove()
        assert torch.equal(G(z, text), plain)
    torch.testing.assert_close(torch.cat(styles), w + 1 + offsets[1:])


def test_a_step_out_of_the_finite_numbers_is_taken_back(small: Small) -> None:
    search = searched(small("residual"), ramp(4, 16), steps=4)
    best, nearest = search.best, search.least
    with torch.no_grad():
        search.offsets.fill_(float("nan"))
    search.step()
    assert search.best is best
    for _ in range(4):
        search.step()
    assert search.best is not None
    assert search.best.isfinite().all()
    assert search.least < nearest


def test_another_seed_begins_elsewhere(small: Small) -> None:
    model = small("residual")
    assert not torch.equal(Inversion(model, ramp(4, 16), 0).draw("a star"), Inversion(model, ramp(4, 16), 1).draw("a star"))


def test_pictures_are_read_as_the_model_draws(shapes: Text2Image, tmp_path: Path) -> None:
    Image.new("RGBA", (200, 100), (255, 0, 0, 255)).save(tmp_path / "wide.png")
    picture = read_picture(tmp_path / "wide.png", shapes)
    assert picture.shape == (1, 3, 64, 64)
    assert picture[0, :, 32, 32].tolist() == [1, -1, -1]
    assert picture[0, :, 2, 2].tolist() == [1, 1, 1]  # borders
    assert read_picture(tmp_path / "wide.png", shapes, alpha=True)[0, :, 2, 2].tolist() == [-1] * 4
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(GanT2IError, match=r"text\.png cannot be used: the file is not one of"):
        read_picture(tmp_path / "text.png", shapes)


def test_a_generator_without_a_mapping_network_is_refused(shapes: Text2Image) -> None:
    with pytest.raises(UsageError, match="the generator 'style' has no mapping network: it has no styles to draw your picture with"):
        mapped_generator(Text2Image(Generator(), shapes.encoder, shapes.info))
