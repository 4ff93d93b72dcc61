"""One step against a reference written by hand, and what it must leave alone."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import second_generator  # noqa: F401 (registers it)
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_t2i import registry
from gan_t2i.data.batches.sampler import Batch
from gan_t2i.losses.adversarial import LOSSES
from gan_t2i.losses.inputs import StepNoise
from gan_t2i.training.schedule import ema_decay
from gan_t2i.training.session import Session

MakeSession = Callable[..., Session]
SHARED = torch.zeros(4, dtype=torch.bool)  # each caption with one image
NO_PENALTY = {"r1_gamma": 0, "r2_gamma": 0}
Gradients = dict[str, dict[str, Tensor]]

# (D's loss, G's loss, the mismatch term) of logits, as in the papers
FORMULAS: dict[str, tuple[Callable[..., Tensor], ...]] = {
    "relativistic": (lambda r, f: -F.logsigmoid(r - f), lambda r, f: -F.logsigmoid(f - r), lambda r, m: -F.logsigmoid(r - m)),
    "non_saturating": (
        lambda r, f: -F.logsigmoid(r) - F.logsigmoid(-f),
        lambda r, f: -F.logsigmoid(f),
        lambda r, m: -F.logsigmoid(-m),
    ),
    "hinge": (
        lambda r, f: (1 - r).clamp(min=0) + (1 + f).clamp(min=0),
        lambda r, f: -f,
        lambda r, m: (1 + m).clamp(min=0),
    ),
}


def record_gradients(session: Session, monkeypatch: pytest.MonkeyPatch) -> Gradients:
    """Fills the result with the gradients of the next step, which then moves nothing."""
    networks, gradients = session.networks, {}
    for name, network, optimizer in (("G", networks.G, networks.g_optimizer), ("D", networks.D, networks.d_optimizer)):

        def record(name: str = name, network: nn.Module = network) -> None:
            gradients[name] = {key: p.grad.clone() for key, p in network.named_parameters() if p.grad is not None}

        monkeypatch.setattr(optimizer, "step", record)
    return gradients


def gradients_of(loss: Tensor, network: nn.Module) -> dict[str, Tensor]:
    names, parameters = zip(*network.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    return {name: gradient for name, gradient in zip(names, found, strict=True) if gradient is not None}


@pytest.mark.parametrize("loss", list(LOSSES))
@pytest.mark.parametrize("nimg", [2, 4], ids=["no penalty", "penalty"])
def test_gradients_are_those_of_the_two_losses(make_session: MakeSession, monkeypatch: pytest.MonkeyPatch, loss: str, nimg: int) -> None:
    """Each network's gradients are those of its own loss alone, so neither loss leaves any in the other network."""
    penalty = {"interval": 2, "fraction": 1, "r1_gamma": 3.0, "r2_gamma": 5.0}
    # Two pictures: whichever way captions are exchanged, each is held against the other's.
    session = make_session(batch=2, precision="float32", loss=loss, terms={"mismatch": {"weight": 0.7}}, penalty=penalty)
    G, D = session.networks.G, session.networks.D
    latents: list[Tensor] = []
    hook = G.register_forward_pre_hook(lambda network, inputs: latents.append(inputs[0]))
    gradients = record_gradients(session, monkeypatch)
    metrics = session.run_step(nimg)
    hook.remove()

    batch = session.sampler.batch(nimg, 2)
    pictures, ids = batch.images, batch.captions
    assert ids[0] != ids[1]
    text, real = session.cache.gather(ids), pictures.float() / 127.5 - 1
    fake = G(torch.cat(latents), text)
    own = D.text_head(text)
    of_real, of_mismatched = D(real, own), D(real, own[torch.tensor([1, 0])])
    d_loss, g_loss, mismatch = FORMULAS[loss]
    for_g = g_loss(of_real.detach(), D(fake, own)).mean()
    of_fake = D(fake.detach(), own)
    for_d = d_loss(of_real, of_fake).mean() + 0.7 * mismatch(of_real, of_mismatched).mean()
    if nimg % 4 == 0:
        for images, gamma in ((real, 3.0), (fake.detach(), 5.0)):
            images = images.clone().requires_grad_()
            (slope,) = torch.autograd.grad(D(images, own).sum(), images, create_graph=True)
            for_d = for_d + 2 * gamma / 2 * slope.square().sum() / 2  # interval, gamma / 2, mean of two pictures
    torch.testing.assert_close(metrics["Loss/G/loss"], for_g.detach())
    torch.testing.assert_close(metrics["Loss/D/loss"], d_loss(of_real, of_fake).mean().detach())
    torch.testing.assert_close(metrics["Loss/scores/mismatched"], of_mismatched.mean().detach())
    torch.testing.assert_close(gradients["G"], gradients_of(for_g, G), rtol=1e-3, atol=1e-6)
    expected = gradients_of(for_d, D)
    torch.testing.assert_close({name: gradients["D"][name] for name in expected}, expected, rtol=1e-3, atol=1e-6)
    assert not any(gradients["D"][name].any() for name in gradients["D"].keys() - expected.keys())
    norm = torch.stack([gradient.norm() for gradient in gradients["D"].values()]).norm()
    torch.testing.assert_close(metrics["Gradient/D"], norm)


@pytest.mark.parametrize(("accumulation", "kimg", "nimg", "pull"), [(1, None, 0, 7.0), (2, None, 0, 7.0), (1, 0.032, 16, 3.5)])
def test_reconstruction_draws_g_to_the_picture_of_its_caption_and_leaves_d_alone(
    make_session: MakeSession, monkeypatch: pytest.MonkeyPatch, accumulation: int, kimg: float | None, nimg: int, pull: float
) -> None:
    found = []
    for weight in (0.0, 7.0):
        # brighter and shifted for D alone: what is held against the real picture is what G drew
        session = make_session(
            precision="float32",
            accumulation=accumulation,
            terms={"reconstruction": {"weight": weight, "kimg": kimg}},
            augment={"translation": 0.25, "brightness": 0.5},
            penalty=NO_PENALTY,
        )
        gradients = record_gradients(session, monkeypatch)
        found.append((session.run_step(nimg), gradients))
    (_, without), (metrics, gradients) = found

    G, config = session.networks.G, session.config
    batch = session.sampler.batch(nimg, config.batch)
    fake = G(StepNoise.draw(config.seed, nimg, config.batch, G.z_width, config.augment).z[:, 0], session.cache.gather(batch.captions))
    distance = (fake - (batch.images.float() / 127.5 - 1)).square().mean()
    torch.testing.assert_close(metrics["Loss/G/distance"], distance.detach())
    expected = {name: without["G"][name] + gradient for name, gradient in gradients_of(pull * distance, G).items()}
    torch.testing.assert_close({name: gradients["G"][name] for name in expected}, expected, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(gradients["D"], without["D"], rtol=1e-5, atol=1e-7)


def test_a_step_moves_both_networks_and_the_average(make_session: MakeSession) -> None:
    session = make_session(optimizer={"g_lr": 1e-3, "d_lr": 3e-3, "warmup_kimg": 0.034}, ema={"half_life_kimg": 0.02, "ramp": 0})
    networks = session.networks
    before = {name: [p.detach().clone() for p in getattr(networks, name).parameters()] for name in ("G", "D", "G_ema")}
    session.run_step(16)
    moved = {
        name: [(p.detach() - old).abs().max().item() for p, old in zip(getattr(networks, name).parameters(), before[name], strict=True)]
        for name in before
    }
    # Adam's first step is the learning rate, here half warmed up, in the direction of the gradient's sign.
    assert max(moved["G"]) == pytest.approx(0.5e-3, rel=1e-2)
    assert max(moved["D"]) == pytest.approx(1.5e-3, rel=1e-2)
    assert sum(distance > 0 for distance in moved["G"]) > len(moved["G"]) / 2
    assert sum(distance > 0 for distance in moved["D"]) > len(moved["D"]) / 2
    decay = ema_decay(20, 4, session.config.ema)
    for average, old, new in zip(networks.G_ema.parameters(), before["G_ema"], networks.G.parameters(), strict=True):
        torch.testing.assert_close(average, decay * old + (1 - decay) * new.detach())
    assert max(moved["G_ema"]) == pytest.approx((1 - decay) * 0.5e-3, rel=1e-2)
    assert all(p.grad is None or not p.grad.any() for network in (networks.G, networks.D) for p in network.parameters())


@pytest.mark.parametrize(("name", "loss"), [*((name, "relativistic") for name in sorted(registry.names("discriminator"))), ("resnet", "hinge")])
def test_every_negative_is_held_against_its_own_picture(
    make_session: MakeSession, monkeypatch: pytest.MonkeyPatch, name: str, loss: str
) -> None:
    session = make_session(precision="float32", discriminator={"name": name}, loss=loss)
    shown = session.sampler.batch(0, 4)
    negatives = torch.stack([shown.captions.roll(1), shown.captions.roll(2), shown.captions], dim=1)
    mask = torch.tensor([True, True, False]).expand(4, 3)
    D, G = session.networks.D, session.networks.G
    latents: list[Tensor] = []
    hook = G.register_forward_pre_hook(lambda network, inputs: latents.append(inputs[0]))
    record_gradients(session, monkeypatch)
    metrics = session.step(Batch(shown.images, shown.captions, negatives, mask, shown.shared), session.cache.gather, 4)
    hook.remove()
    real = shown.images.float() / 127.5 - 1
    fake = G(torch.cat(latents), session.cache.gather(shown.captions))

    def judge(pictures: Tensor, ids: Tensor) -> Tensor:
        return D(pictures, D.text_head(session.cache.gather(ids)))

    def term(pictures: Tensor) -> Tensor:
        """The mismatch term, caption by caption."""
        own, *others = (judge(pictures, ids) for ids in (shown.captions, *negatives[:, :2].T))
        if loss == "hinge":
            return sum((1 + other).clamp(min=0) for other in others).mean() / 2
        return torch.log(1 + sum((other - own).exp() for other in others)).mean()

    torch.testing.assert_close(metrics["Loss/D/mismatch"], term(real).detach(), rtol=1e-4, atol=1e-5)
    g_loss = FORMULAS[loss][1](judge(real, shown.captions), judge(fake, shown.captions)).mean()
    torch.testing.assert_close(metrics["Loss/G/loss"], g_loss.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("accumulation", [2, 4])
@pytest.mark.parametrize("r1_gamma", [0, 2.0])
def test_accumulated_parts_are_the_whole_batch(
    make_session: MakeSession, monkeypatch: pytest.MonkeyPatch, accumulation: int, r1_gamma: float
) -> None:
    changes: dict[str, Any] = {"precision": "float32", "penalty": {"fraction": 1, "interval": 1, "r1_gamma": r1_gamma, "r2_gamma": r1_gamma}}
    results = []
    for parts in (1, accumulation):
        session = make_session(accumulation=parts, **changes)
        gradients = record_gradients(session, monkeypatch)
        batch = session.sampler.batch(4, 4)
        mask = torch.tensor([[True], [False], [True], [True]])  # a masked pair in one part, so that parts weigh differently
        metrics = session.step(dataclasses.replace(batch, negative_mask=mask), session.cache.gather, 4)
        results.append((gradients, metrics))
    (whole, whole_metrics), (parts, parts_metrics) = results
    assert whole["G"].keys() == parts["G"].keys()
    assert whole["D"].keys() == parts["D"].keys()
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(parts_metrics, whole_metrics, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("penalty", ["gradient", "finite_difference"])
def test_checkpointing_changes_no_bit(make_session: MakeSession, monkeypatch: pytest.MonkeyPatch, penalty: str, precision: str) -> None:
    """Gradients, metrics and moving buffers of a step without a penalty and of one with it."""
    results = []
    for checkpointing in (False, True):
        session = make_session(checkpointing=checkpointing, accumulation=2, penalty={"name": penalty, "interval": 2}, precision=precision)
        gradients = record_gradients(session, monkeypatch)
        calls: list[nn.Module] = []
        for network in (session.networks.G.blocks[-1], session.networks.D.trunk.down16):
            network.conv1.register_forward_hook(lambda layer, inputs, output, calls=calls: calls.append(layer))
        for nimg in (4, 8):
            metrics = session.run_step(nimg)
            results.append((len(calls), {**metrics, **gradients["G"], **gradients["D"], "w_avg": session.networks.G.mapping.w_avg.clone()}))
            calls.clear()
            session.networks.g_optimizer.zero_grad()
            session.networks.d_optimizer.zero_grad()
    for (calls_plain, plain), (calls_again, again) in zip(results[:2], results[2:], strict=True):
        assert calls_again > calls_plain
        assert plain.keys() == again.keys()
        assert [key for key in plain if not torch.equal(plain[key], again[key])] == []


def test_equal_captions_are_no_mismatch(make_session: MakeSession, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for match_weight in (1.0, 0.0):
        session = make_session(terms={"mismatch": {"weight": match_weight}})
        gradients = record_gradients(session, monkeypatch)
        ids = torch.tensor([6, 6, 6, 6])
        batch = Batch(session.sampler.batch(0, 4).images, ids, ids[:, None], torch.zeros(4, 1, dtype=torch.bool), SHARED)
        metrics = session.step(batch, session.cache.gather, 0)
        assert metrics.get("Loss/D/mismatch", 0) == 0
        results.append(gradients)
    torch.testing.assert_close(results[0], results[1])


def test_masked_pairs_do_not_thin_the_mismatch_out(make_session: MakeSession, monkeypatch: pytest.MonkeyPatch) -> None:
    session = make_session()
    record_gradients(session, monkeypatch)
    with torch.no_grad():
        for parameter in session.networks.D.head.parameters():
            parameter.zero_()  # every logit is 0, and every relativistic term log 2
    images = session.sampler.batch(0, 4).images
    for captions in ([6, 6, 8, 8], [6, 8, 6, 8], [6, 6, 6, 8]):
        ids = torch.tensor(captions)
        negatives = ids.roll(1)[:, None]
        metrics = session.step(Batch(images, ids, negatives, negatives != ids[:, None], SHARED), session.cache.gather, 4)
        for name in ("Loss/D/mismatch", "Loss/D/loss", "Loss/G/loss"):
            assert metrics[name].item() == pytest.approx(math.log(2))


def test_the_penalty_comes_every_interval_steps(make_session: MakeSession) -> None:
    session = make_session(penalty={"interval": 3})
    shown = [sorted(name for name in session.run_step(nimg) if "penalty" in name) for nimg in range(0, 28, 4)]
    both = ["Loss/r1_penalty", "Loss/r2_penalty"]
    assert shown == [both, [], [], both, [], [], both]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("penalty", ["gradient", "finite_difference"])
@pytest.mark.parametrize("loss", list(LOSSES))
def test_every_choice_trains(make_session: MakeSession, loss: str, penalty: str, precision: str) -> None:
    session = make_session(loss=loss, penalty={"name": penalty}, precision=precision)
    for nimg in (0, 4):
        metrics = session.run_step(nimg)
        assert {name for name, value in metrics.items() if not value.isfinite()} == set()
        assert {"Loss/G/loss", "Loss/D/loss", "Loss/D/mismatch", "Gradient/G", "Gradient/D"} <= metrics.keys()
        assert metrics["Gradient/G"] > 0
        assert metrics["Gradient/D"] > 0
    for network in (session.networks.G, session.networks.D, session.networks.G_ema):
        assert all(tensor.isfinite().all() and tensor.dtype == torch.float32 for tensor in network.parameters())


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("name", registry.names("generator"))
def test_every_generator_trains(make_session: MakeSession, small_config: Callable[..., dict[str, Any]], name: str, precision: str) -> None:
    known = registry.lookup("generator", name).Config.model_fields
    params = {key: value for key, value in small_config()["generator"]["params"].items() if key in known}
    session = make_session(generator={"name": name, "params": params}, precision=precision)
    before = {key: p.detach().clone() for key, p in session.networks.G.named_parameters()}
    for nimg in (0, 4):
        metrics = session.run_step(nimg)
        assert all(value.isfinite() for value in metrics.values())
    assert {key for key, p in session.networks.G.named_parameters() if torch.equal(p, before[key])} == set()
    assert all(p.isfinite().all() and p.dtype == torch.float32 for p in session.networks.G.parameters())


def test_a_penalty_without_gamma_changes_no_gradient(make_session: MakeSession, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for penalty in ({**NO_PENALTY, "interval": 1}, {"interval": 10}):
        session = make_session(precision="float32", penalty=penalty)
        results.append(record_gradients(session, monkeypatch))
        assert not [name for name in session.run_step(4) if "penalty" in name], "it is not even computed"
    torch.testing.assert_close(results[0], results[1])


def test_pictures_get_a_gradient_once(make_session: MakeSession) -> None:
    """They get that of G's loss at the generated ones; that of D's own is for its parameters alone."""
    session = make_session(penalty=NO_PENALTY)
    trunk, passed = session.networks.D.trunk, []

    def watch(trunk: nn.Module, inputs: tuple[Tensor]) -> None:
        if inputs[0].requires_grad:
            inputs[0].register_hook(passed.append)

    trunk.register_forward_pre_hook(watch)
    session.run_step(4)
    assert [gradient.shape for gradient in passed] == [(4, 3, 16, 16)]
    assert passed[0].any()
