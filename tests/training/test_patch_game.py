"""The discriminator of patches tells real from drawn, and what the caption asks for, in one place."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from gan_t2i.models.patch_discriminator import STRIDE, PatchDiscriminator
from gan_t2i.training.patch_game import PatchGame

CHANNELS, SENTENCE = 4, 6


@pytest.fixture
def game() -> PatchGame:
    session = SimpleNamespace(
        device=torch.device("cpu"),
        config=SimpleNamespace(precision="fp32", seed=0),
        dataset=SimpleNamespace(channels=CHANNELS),
        cache=SimpleNamespace(width=SENTENCE),
    )
    return PatchGame(cast(Any, session))


def striped(count: int, period: int) -> torch.Tensor:
    """Images [count, 4, 16, 16] of vertical stripes, each a few pixels aside."""
    columns = torch.arange(16)[None] + torch.arange(count)[:, None]
    return (columns // period % 2 * 2.0 - 1)[:, None, None].expand(count, CHANNELS, 16, 16).clone()


def test_it_sees_patches_alone() -> None:
    torch.manual_seed(0)
    network = PatchDiscriminator(CHANNELS, SENTENCE)
    images = torch.randn(2, CHANNELS, 64, 64, requires_grad=True)
    logits = network(images, torch.randn(2, SENTENCE))
    assert logits.shape == (2, 64 // STRIDE, 64 // STRIDE)
    (gradient,) = torch.autograd.grad(logits[0, 8, 8], images)
    rows = gradient[0].abs().sum(dim=(0, 1)).nonzero()
    assert rows.max() - rows.min() + 1 == 20
    assert not gradient[1].any()


def test_it_learns_to_tell_real_from_drawn_and_says_how_to_deceive_it(game: PatchGame) -> None:
    real, fake, sentence = striped(8, 2), striped(8, 4), torch.randn(8, SENTENCE, generator=torch.Generator().manual_seed(0))
    before = game.loss(real, fake, sentence)
    for step in range(30):
        game.learn(step, real, fake, sentence)
    shown = fake.clone().requires_grad_()
    loss = game.loss(real, shown, sentence)
    assert loss > 2 * before
    loss.backward()
    assert shown.grad is not None
    assert shown.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in game.D.parameters())
    assert game.loss(real, real, sentence).item() == pytest.approx(0.6931, abs=1e-3)  # nothing to tell


def test_it_reads_the_caption(game: PatchGame) -> None:
    sentence = torch.randn(2, SENTENCE, generator=torch.Generator().manual_seed(0)).repeat_interleave(4, dim=0)
    real, fake = torch.cat([striped(4, 2), striped(4, 4)]), torch.cat([striped(4, 4), striped(4, 2)])  # each asked for elsewhere
    for step in range(60):
        game.learn(step, real, fake, sentence)
    right, wrong = game.D(real, sentence).mean(dim=(1, 2)), game.D(fake, sentence).mean(dim=(1, 2))
    assert (right > wrong).all()
