"""Captured pictures, with a backend that replays the Python function, and on a GPU with the real one."""

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from replayed import Replayed
from torch import nn

import gan_t2i.models  # noqa: F401 (registers them)
from gan_t2i import registry
from gan_t2i.core.graphs import Replay
from gan_t2i.core.images import to_pictures
from gan_t2i.core.runtime import seeded_weights
from gan_t2i.models.base import Generator
from gan_t2i.models.latent_generator import LatentGenerator
from gan_t2i.sampling import captured
from gan_t2i.sampling.draw import draw_one, latent
from gan_t2i.sampling.inversion import moved
from gan_t2i.text.batch import TextBatch

Use = Callable[[Any], Any]
Pixels = np.ndarray[Any, np.dtype[np.int16]]
NAMES = ("residual", "style", "transformer", "latents")
WIDTH = 24


def make(name: str = "style", device: str = "cpu") -> Generator:
    """Return an untrained generator of 16 px with alpha, or of 64 px in latents."""
    params = {"w_width": 32, "text_head": {"width": 32, "layers": 1, "heads": 2}}
    options: dict[str, Any] = {"transformer": {"width": 32, "heads": 2, "layers": 2}}.get(name, {"channel_max": 16})
    with seeded_weights(0):
        kind = "residual" if name == "latents" else name
        generator = registry.build("generator", kind, {**params, **options}, resolution=16, channels=4, text_width=WIDTH, max_tokens=8)
        if name == "latents":
            autoencoder = registry.build("autoencoder", "conv", {"latent_channels": 4, "width": 8}, resolution=64, channels=4)
            generator = LatentGenerator(generator, autoencoder)
        for module in generator.modules():
            if hasattr(module, "w_avg"):
                module.w_avg.normal_()  # so that a truncation can be seen
    return generator.eval().requires_grad_(False).to(device)


def prompt(length: int, seed: int = 0) -> TextBatch:
    rng = torch.Generator().manual_seed(seed)
    return TextBatch(
        torch.randn(1, length, WIDTH, generator=rng), torch.ones(1, length, dtype=torch.bool), torch.randn(1, WIDTH, generator=rng)
    )


def pixels(generator: Generator, seed: int = 0, length: int = 3, psi: float = 1.0) -> Pixels:
    return np.asarray(draw_one(generator, latent(generator, seed), prompt(length, seed), psi), np.int16)


@torch.no_grad()
def eager(generator: Generator, seed: int = 0, length: int = 3, psi: float = 1.0) -> Pixels:
    device = next(generator.parameters()).device
    [picture] = to_pictures(generator(latent(generator, seed).to(device), prompt(length, seed).to(device), psi))
    return np.asarray(picture, np.int16)


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    """Makes a backend the CPU's."""

    def make_it(backend: Any) -> Any:
        monkeypatch.setitem(captured.BACKENDS, "cpu", lambda device: backend)
        return backend

    return make_it


@pytest.mark.parametrize("name", NAMES)
def test_replayed_pictures_are_the_generators_own(name: str, use: Use) -> None:
    backend, generator = use(Replayed()), make(name)
    wanted = [(seed, length, psi) for seed in range(4) for length, psi in ((3, 1.0), (5, 1.0), (3, 0.5))]
    for each in wanted:
        np.testing.assert_array_equal(pixels(generator, *each), eager(generator, *each))
    assert backend.captures == 2  # a graph for each length, whatever the truncation
    assert backend.replays == 2 + 12 - 4  # compared, and all pictures but the first two of a length
    assert len({pixels(generator, *each).tobytes() for each in wanted}) == len(wanted)


def test_nothing_is_captured_for_one_picture_or_without_a_gpu(use: Use) -> None:
    generator = make()
    for _ in range(3):
        pixels(generator)
    assert generator not in captured._captured
    backend = use(Replayed())
    for length in (3, 4, 5):
        pixels(generator, length=length)
    assert backend.captures == 0


def to_other_places(generator: Generator) -> None:
    generator.double().float()


def assign(generator: Generator) -> None:
    generator.load_state_dict({name: value.clone() for name, value in generator.state_dict().items()}, assign=True)


def replace_a_weight(generator: Generator) -> None:
    generator.constant = nn.Parameter(generator.constant + 1)  # type: ignore[operator]


def replace_a_block(generator: Generator) -> None:
    generator.blocks[0] = make().blocks[0]  # type: ignore[index, operator]


@pytest.mark.parametrize("change", [to_other_places, assign, replace_a_weight, replace_a_block])
def test_weights_elsewhere_are_captured_anew(change: Callable[[Generator], None], use: Use) -> None:
    backend, generator = use(Replayed()), make()
    for wanted in (1, 2):
        for seed in range(4):
            np.testing.assert_array_equal(pixels(generator, seed), eager(generator, seed))
        assert backend.captures == wanted
        change(generator)


def test_weights_that_change_where_they_are_are_seen(use: Use) -> None:
    """As those of G's average do in training."""
    backend, generator = use(Replayed()), make()
    before = [pixels(generator) for _ in range(3)][-1]
    generator.constant.add_(1)  # type: ignore[operator]
    after = pixels(generator)
    np.testing.assert_array_equal(after, eager(generator))
    assert np.abs(after - before).max() > 0
    assert (backend.captures, backend.replays) == (1, 3)


def test_hooks_are_heard(use: Use) -> None:
    """`explain` records attention by hooks, and `project` moves styles by them."""
    backend, generator = use(Replayed()), make()
    before = [pixels(generator) for _ in range(3)][-1]
    replays = backend.replays
    with moved(generator, torch.ones(1 + len(generator.blocks), 32)):  # type: ignore[arg-type]
        changed = pixels(generator)
        np.testing.assert_array_equal(changed, eager(generator))
    assert np.abs(changed - before).max() > 0
    assert backend.replays == replays
    np.testing.assert_array_equal(pixels(generator), before)
    assert backend.replays == replays + 1


@pytest.mark.parametrize(
    ("backend", "why"),
    [
        (Replayed(broken="operation not permitted when stream is capturing\nmore"), "operation not permitted when stream is capturing"),
        (Replayed(wrong=1e-3), "a replay gave another picture than the generator itself"),
        (Replayed(wrong=float("nan")), "a replay gave another picture than the generator itself"),
    ],
    ids=["refused", "wrong", "nan"],
)
def test_what_cannot_be_captured_is_drawn_eagerly_and_says_so_once(backend: Replayed, why: str, use: Use, said: list[str]) -> None:
    generator = make()
    use(backend)
    for seed in range(4):
        for length in (3, 5):
            np.testing.assert_array_equal(pixels(generator, seed, length), eager(generator, seed, length))
    assert said == [f"pictures are drawn one operation at a time, as they cannot be captured: {why}"]
    assert backend.replays == bool(backend.wrong)


def test_graphs_are_freed_with_their_generator_or_where_it_draws_without_them(use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    class Recorded(Replayed):
        def capture(self, function: Replay) -> Replay:
            result = function()  # a graph does not keep its function
            return lambda: result

    use(Recorded())
    before, generator, other = len(captured._captured), make(), make()
    for each in (generator, other):
        for _ in range(3):
            pixels(each)
    assert len(captured._captured) == before + 2
    del generator, each
    gc.collect()
    assert len(captured._captured) == before + 1
    monkeypatch.delitem(captured.BACKENDS, "cpu")
    pixels(other)
    assert len(captured._captured) == before


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_replays_the_generators_own_pictures(name: str, said: list[str]) -> None:
    generator = make(name, "cuda")
    wanted = [(seed, length, psi) for seed in range(4) for length, psi in ((3, 1.0), (5, 1.0), (3, 0.5))]
    drawn = [pixels(generator, *each) for each in wanted]
    assert said == []
    assert captured._captured[generator]._graphs.keys() == {3, 5}
    for pictured, each in zip(drawn, wanted, strict=True):
        np.testing.assert_array_equal(pictured, eager(generator, *each))
    assert len({pictured.tobytes() for pictured in drawn}) == len(wanted)
