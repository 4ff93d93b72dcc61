"""Contract of every registered generator and discriminator; a new one is covered by registering it."""

import itertools

import pytest
import second_generator  # noqa: F401 (registers it)
import torch

import gan_t2i.models  # noqa: F401 (registers them)
from gan_t2i import registry
from gan_t2i.core.errors import UsageError
from gan_t2i.text.batch import TextBatch

E, MAX_TOKENS = 24, 8
# Settings that make a network small, for those that have them.
CHEAP = {
    "channel_max": 16,
    "w_width": 32,
    "z_width": 8,
    "text_head": {"width": 32, "layers": 1, "heads": 2},
}
# Options of single networks that all contract tests cover too.
OPTIONS = {
    ("generator", "style"): [
        {"second_order": True},
        {"self_attention_resolutions": [4, 8], "word_resolutions": [4]},
        {"mapping_layers": 1},
        {"local_styles": True, "word_resolutions": [4, 8]},
        {"smooth_styles": True, "local_styles": True, "word_resolutions": [4]},
    ],
}

Case = tuple[str, dict]


def cases(kind: str) -> list:
    """Return every registered name of a kind, with default settings and with its options."""
    each = [(name, options) for name in registry.names(kind) for options in [{}, *OPTIONS.get((kind, name), [])]]
    return [pytest.param(case, id="-".join([case[0], *case[1]])) for case in each]


GENERATORS = pytest.mark.parametrize("case", cases("generator"))
DISCRIMINATORS = pytest.mark.parametrize("case", cases("discriminator"))
RESOLUTIONS = [2**k for k in range(4, 10)]


def build(kind: str, case: Case, resolution: int = 16, **more: int):
    """Build a network from a fixed seed."""
    name, options = case
    cheap = {key: value for key, value in CHEAP.items() if key in registry.lookup(kind, name).Config.model_fields}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return registry.build(kind, name, {**cheap, **options}, resolution=resolution, text_width=E, max_tokens=MAX_TOKENS, **more)


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_images(n: int, resolution: int = 16) -> torch.Tensor:
    return draws(n, 3, resolution, resolution).clamp(-1, 1)


def with_gradients(text: TextBatch) -> TextBatch:
    return TextBatch(text.tokens.clone().requires_grad_(), text.mask, text.pooled.clone().requires_grad_())


def replace(tensor: torch.Tensor, index: int, value: torch.Tensor) -> torch.Tensor:
    result = tensor.clone()
    result[index] = value
    return result


def replace_caption(text: TextBatch, index: int, other: TextBatch) -> TextBatch:
    return TextBatch(*(replace(getattr(text, part), index, getattr(other, part)[0]) for part in ("tokens", "mask", "pooled")))


def assert_close(one: torch.Tensor, two: torch.Tensor) -> None:
    """Compare to float32 rounding: kernels may sum in another order in another batch."""
    torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)


def assert_all_get_gradients(network: torch.nn.Module) -> None:
    for name, p in network.named_parameters():
        if p.requires_grad:
            assert p.grad is not None, f"no gradient for {name}"
            assert p.grad.isfinite().all(), f"gradient not finite for {name}"
            assert (p.grad != 0).any(), f"gradient all zero for {name}"


def assert_reached(text: TextBatch) -> None:
    """Check that every real token and every pooled vector has a gradient, and that no padding has."""
    assert text.tokens.grad is not None
    assert text.pooled.grad is not None
    assert text.tokens.grad.isfinite().all()
    assert torch.equal((text.tokens.grad != 0).any(dim=2), text.mask)
    assert (text.pooled.grad != 0).any(dim=1).all()


def test_something_is_registered():
    assert {"second", "style"} <= set(registry.names("generator"))
    assert {"aligned", "plain", "resnet", "transformer"} <= set(registry.names("discriminator"))


# Generators


@GENERATORS
def test_images_have_alpha_with_four_channels(case, make_text):
    G = build("generator", case, channels=4)
    images = G(draws(2, G.z_width), make_text(3, 5))
    assert images.shape == (2, 4, 16, 16)
    images[:, 3].sum().backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in G.parameters())


@GENERATORS
@pytest.mark.parametrize("resolution", [16, 32])
def test_a_generator_makes_images_of_its_resolution(case, resolution, make_text):
    G = build("generator", case, resolution)
    assert G.resolution == resolution
    images = G(draws(2, G.z_width), make_text(3, 5))
    assert images.shape == (2, 3, resolution, resolution)
    assert images.dtype == torch.float32
    assert images.isfinite().all()


def test_64_px(make_text):
    G, D = build("generator", ("style", {}), 64), build("discriminator", ("resnet", {}), 64)
    text = make_text(3)
    images = G(draws(1, G.z_width), text)
    assert images.shape == (1, 3, 64, 64)
    assert D(images, D.text_head(text)).shape == (1,)


@GENERATORS
@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_a_generator_builds_at_every_power_of_two(case, resolution):
    with torch.device("meta" if resolution == 512 else "cpu"):
        assert build("generator", case, resolution).resolution == resolution


@GENERATORS
def test_every_weight_of_a_generator_and_every_word_get_a_gradient(case, make_text):
    G, text = build("generator", case), with_gradients(make_text(3, 5))
    G(draws(2, G.z_width), text).pow(3).sum().backward()
    assert_all_get_gradients(G)
    assert_reached(text)


@GENERATORS
def test_an_image_depends_on_no_other_item(case, make_text):
    G, text, z = build("generator", case).eval(), make_text(3, 5, 4), draws(3, 8)
    before = G(z, text)
    after = G(replace(z, 1, draws(8, seed=5)), replace_caption(text, 1, make_text(5, seed=5)))
    assert_close(after[[0, 2]], before[[0, 2]])
    assert (after[1] - before[1]).abs().mean() > 1e-2
    assert_close(G(z[:1], text[:1]), before[:1])


@GENERATORS
def test_another_caption_gives_another_image(case, make_text):
    G, text, other = build("generator", case).eval(), make_text(5), make_text(5, seed=1)
    z = draws(1, G.z_width)
    # Words and pooled vector each matter.
    for changed in (TextBatch(other.tokens, text.mask, text.pooled), TextBatch(text.tokens, text.mask, other.pooled)):
        assert (G(z, changed) - G(z, text)).abs().mean() > 1e-3


@GENERATORS
def test_padding_changes_no_image(case, make_text, pad):
    G, text = build("generator", case).eval(), make_text(3, 5)
    z = draws(2, G.z_width)
    assert_close(G(z, pad(text, 3)), G(z, text))


@GENERATORS
def test_truncation_pulls_z_and_leaves_the_prompt(case, make_text):
    G, text = build("generator", case), make_text(5)
    one, two = draws(1, G.z_width), draws(1, G.z_width, seed=1)
    G(draws(16, G.z_width), make_text(*[5] * 16))  # in training mode: gives w_avg something to hold
    G.eval()
    assert_close(G(one, text, 0.0), G(two, text, 0.0))
    assert (G(one, text, 0.0) - G(one, make_text(5, seed=1), 0.0)).abs().mean() > 1e-2, "the prompt was averaged away"
    assert torch.equal(G(one, text, 1.0), G(one, text))
    distances = [(G(one, text, psi) - G(two, text, psi)).abs().mean() for psi in (0.0, 0.3, 0.7, 1.0)]
    assert all(near < far for near, far in itertools.pairwise(distances))


@GENERATORS
def test_a_generator_in_evaluation_mode_keeps_its_buffers(case, make_text):
    G = build("generator", case)
    buffers = {name: buffer.clone() for name, buffer in G.named_buffers()}
    G.eval()(draws(2, G.z_width), make_text(3, 5))
    assert all(torch.equal(buffers[name], buffer) for name, buffer in G.named_buffers())


# Discriminators


@DISCRIMINATORS
@pytest.mark.parametrize("resolution", [16, 32])
def test_a_discriminator_gives_one_logit_per_pair(case, resolution, make_text):
    D = build("discriminator", case, resolution)
    assert D.resolution == resolution
    logits = D(make_images(2, resolution), D.text_head(make_text(3, 5)))
    assert logits.shape == (2,)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


@DISCRIMINATORS
@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_a_discriminator_builds_at_every_power_of_two(case, resolution):
    with torch.device("meta" if resolution == 512 else "cpu"):
        assert build("discriminator", case, resolution).resolution == resolution


@DISCRIMINATORS
def test_every_weight_of_a_discriminator_every_word_and_every_image_get_a_gradient(case, make_text):
    D, text, images = build("discriminator", case), with_gradients(make_text(3, 5)), make_images(2).requires_grad_()
    D(images, D.text_head(text)).sum().backward()
    assert_all_get_gradients(D)
    assert_reached(text)
    assert (images.grad.flatten(1) != 0).any(dim=1).all()


@DISCRIMINATORS
def test_a_discriminator_has_the_double_backward_that_penalties_need(case, make_text):
    D, text, images = build("discriminator", case), make_text(3, 5), make_images(2).requires_grad_()
    (slope,) = torch.autograd.grad(D(images, D.text_head(text)).sum(), images, create_graph=True)
    slope.square().sum().backward()
    for part in (D.trunk, D.head):
        trained = [p for p in part.parameters() if p.requires_grad]
        gradients = [p.grad for p in trained if p.grad is not None]
        assert any((gradient != 0).any() for gradient in gradients) or not trained
        assert all(gradient.isfinite().all() for gradient in gradients)


@DISCRIMINATORS
def test_a_logit_depends_on_no_other_pair(case, make_text):
    D, text, images = build("discriminator", case).eval(), make_text(3, 5, 4), make_images(3)
    before = D(images, D.text_head(text))
    changed = replace(images, 1, make_images(4)[3])
    after = D(changed, D.text_head(replace_caption(text, 1, make_text(5, seed=5))))
    assert_close(after[[0, 2]], before[[0, 2]])
    assert (after[1] - before[1]).abs() > 1e-3
    assert_close(D(images[:1], D.text_head(text[:1])), before[:1])


@DISCRIMINATORS
def test_another_image_or_caption_gives_other_logits(case, make_text):
    D, text, images = build("discriminator", case).eval(), make_text(5), make_images(2)
    other = make_text(5, seed=1)
    logit = D(images[:1], D.text_head(text))
    for changed in (TextBatch(other.tokens, text.mask, text.pooled), TextBatch(text.tokens, text.mask, other.pooled)):
        assert (D(images[:1], D.text_head(changed)) - logit).abs() > 1e-3
    assert (D(images[1:], D.text_head(text)) - logit).abs() > 1e-3


@DISCRIMINATORS
def test_padding_changes_no_logit(case, make_text, pad):
    D, text, images = build("discriminator", case).eval(), make_text(3, 5), make_images(2)
    assert_close(D(images, D.text_head(pad(text, 3))), D(images, D.text_head(text)))


@DISCRIMINATORS
def test_the_trunk_depends_on_no_text_so_its_features_serve_any_caption(case, make_text):
    D, images = build("discriminator", case).eval(), make_images(3)
    condition = D.text_head(make_text(3, 5, 4))
    mismatched = condition[torch.tensor([2, 0, 1])]
    features = D.trunk(images)
    own, other = D.head(features, condition), D.head(features, mismatched)
    assert_close(own, D(images, condition))
    assert_close(other, D(images, mismatched))
    assert ((own - other).abs() > 1e-4).all()


def test_attention_at_a_resolution_that_the_generator_lacks_is_refused():
    for key in ("word_resolutions", "self_attention_resolutions"):
        with pytest.raises(UsageError, match=r"attention at \[64\] px"):
            registry.build("generator", "style", {key: [8, 64]}, resolution=32, text_width=16, max_tokens=8)
