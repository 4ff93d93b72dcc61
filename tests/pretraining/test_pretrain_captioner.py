"""The captioner is pretrained on real pairs, cached, and gives G a loss without being trained by it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gan_t2i.core.errors import UsageError
from gan_t2i.core.files import cache_dir
from gan_t2i.core.images import from_uint8
from gan_t2i.data.packing import PackedDataset
from gan_t2i.losses.term import RunParts
from gan_t2i.models.captioner import Captioner
from gan_t2i.pretraining import captioner as captioning
from gan_t2i.pretraining.captioner import CaptionerTraining
from gan_t2i.training.config import TrainConfig
from gan_t2i.training.session import Session, prepare

MakeSession = Callable[..., Session]
SIZE = {"channel_base": 256, "channel_max": 32, "width": 32, "layers": 2, "heads": 2, "vocabulary_size": 100, "max_tokens": 12}
SMALL = {"weight": 1.0, "size": SIZE, "kimg": 0.064, "batch": 8}


def settings_of(**changes: Any) -> CaptionerTraining:
    return CaptionerTraining.model_validate({key: value for key, value in {**SMALL, **changes}.items() if key != "weight"})


def captioner_of(session: Session) -> Captioner:
    captioner = session.networks.auxiliary["captioner"]
    assert isinstance(captioner, Captioner)
    return captioner


def pretrained(parts: RunParts, **changes: Any) -> Captioner:
    captioner = captioning.build_captioner(settings_of(**changes), parts)
    captioning.pretrain(captioner, settings_of(**changes), parts)
    return captioner


@torch.no_grad()
def log_likelihood(captioner: Captioner, dataset: PackedDataset, captions: list[str]) -> torch.Tensor:
    """Score the training pictures, each with its own of `captions`."""
    return captioner(from_uint8(dataset.gather(dataset.train)), captioner.tokenize(captions))


def test_it_learns_what_the_captions_say(make_session: MakeSession) -> None:
    parts = make_session(precision="float32").parts
    dataset = parts.dataset
    own = [dataset.captions[dataset.caption_ids[item][0]] for item in dataset.train.tolist()]
    others = [own[-1], *own[:-1]]
    before = captioning.build_captioner(settings_of(), parts)
    after = pretrained(parts, kimg=2, learning_rate=3e-3, noise=0.1)
    assert (log_likelihood(before, dataset, own) > log_likelihood(before, dataset, others)).float().mean() < 0.9
    assert (log_likelihood(after, dataset, own) > log_likelihood(after, dataset, others)).all()
    assert log_likelihood(after, dataset, own).mean() > -0.4


def test_it_is_pretrained_once_for_all_runs_of_the_same_data(make_session: MakeSession, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    pretrain = captioning.pretrain
    monkeypatch.setattr(captioning, "pretrain", lambda *arguments: (calls.append(1), pretrain(*arguments)))
    settings = {**SMALL, "kimg": 0.048}  # of no other test
    first = captioner_of(make_session(terms={"caption": settings}))
    again = captioner_of(make_session(terms={"caption": {**settings, "weight": 0.5}}))
    assert len(calls) == 1
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    make_session(terms={"caption": {**settings, "noise": 0.2}})
    make_session(terms={"caption": settings}, seed=1)
    assert len(calls) == 3


def test_a_damaged_file_is_replaced(make_session: MakeSession, small_config: Callable[..., dict[str, Any]], said: list[str]) -> None:
    settings = {**SMALL, "kimg": 0.056}
    before = set((cache_dir() / "captioners").glob("*"))
    first = captioner_of(make_session(terms={"caption": settings}))
    [path] = set((cache_dir() / "captioners").glob("*")) - before
    path.write_bytes(path.read_bytes()[:-100])
    again = captioner_of(prepare(TrainConfig.parse(small_config(terms={"caption": settings}))))
    assert any("pretrained again" in line for line in said)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_it_gives_g_alone_a_loss(make_session: MakeSession) -> None:
    """D's step is the same with a captioner as without one, G's is another, and the captioner stays as it is."""
    without, with_it = make_session(), make_session(terms={"caption": SMALL})
    assert without.networks.auxiliary == {}
    captioner = captioner_of(with_it)
    before = {name: tensor.clone() for name, tensor in captioner.state_dict().items()}
    metrics = [session.run_step(0) for session in (without, with_it)]
    assert "Loss/G/caption" not in metrics[0]
    assert metrics[1]["Loss/G/caption"] > 0
    same = {
        name: torch.equal(a, b)
        for (name, a), b in zip(without.networks.D.state_dict().items(), with_it.networks.D.state_dict().values(), strict=True)
    }
    assert all(same.values())
    changed = [not torch.equal(a, b) for a, b in zip(without.networks.G.parameters(), with_it.networks.G.parameters(), strict=True)]
    assert sum(changed) > len(changed) / 2
    assert all(torch.equal(before[name], tensor) for name, tensor in captioner.state_dict().items())
    assert all(p.grad is None for p in captioner.parameters())


def test_it_looks_at_drawn_pictures_through_noise(make_session: MakeSession) -> None:
    session = make_session(terms={"caption": {**SMALL, "noise": 1.0}})
    captioner = captioner_of(session)
    looked: list[torch.Tensor] = []
    captioner.register_forward_pre_hook(lambda module, given: looked.append(given[0].detach()))
    drawn: list[torch.Tensor] = []
    session.networks.G.register_forward_hook(lambda module, given, output: drawn.append(output.detach()))
    session.run_step(0)
    strengths = (looked[0] - drawn[0]).flatten(1).std(dim=1)
    assert ((strengths > 0) & (strengths < 1.1)).all()
    assert strengths.max() > 1.5 * strengths.min()  # another for each picture


def test_in_latents_it_reads_latents(make_session: MakeSession, many_pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gan_t2i.pretraining.autoencoder.LEAST_PSNR", 0.0)  # it is trained for ten steps
    params = {"factor": 2, "latent_channels": 6, "width": 16, "kimg": 0.08, "batch": 8}
    settings: dict[str, Any] = {"autoencoder": {"name": "conv", "params": params}, "data": {"source": str(many_pictures)}}
    session = make_session(**settings, terms={"caption": {**SMALL, "noise": 0.0}})
    captioner, parts = captioner_of(session), session.parts
    looked: list[torch.Tensor] = []
    captioner.register_forward_pre_hook(lambda module, given: looked.append(given[0].detach()))
    drawn: list[torch.Tensor] = []
    session.networks.G.register_forward_hook(lambda module, given, output: drawn.append(output.detach()))
    assert session.run_step(0)["Loss/G/caption"] > 0
    assert torch.equal(looked[0], drawn[0])
    looked.clear()
    captioning.pretrain(captioner, settings_of(noise=0.0, kimg=0.008), parts)
    assert looked[0].shape == (8, 6, 8, 8)
    calls = []
    monkeypatch.setattr(captioning, "pretrain", lambda *arguments: calls.append(1))
    make_session(**settings, terms={"caption": {**SMALL, "noise": 0.0}})
    assert not calls
    settings["autoencoder"] = {"name": "conv", "params": {**params, "noise": 0.05}}
    make_session(**settings, terms={"caption": {**SMALL, "noise": 0.0}})
    assert calls  # other latents, another captioner


@pytest.mark.slow
def test_g_learns_to_be_log_likelihood(make_session: MakeSession) -> None:
    """Beside a D that hardly moves, G's pictures come to be told by the captioner, as those without its pull do not."""
    rates = {"g_lr": 2e-3, "d_lr": 1e-9, "warmup_kimg": 0}
    caption_loss = {}
    for weight in (1e-9, 10.0):
        session = make_session(terms={"caption": {**SMALL, "weight": weight, "kimg": 1}, "mismatch": {"weight": 0}}, optimizer=rates)
        caption_loss[weight] = [session.run_step(nimg)["Loss/G/caption"].item() for nimg in range(0, 600, 4)]
    assert sum(caption_loss[10.0][-20:]) < 0.8 * sum(caption_loss[1e-9][-20:])


def test_a_run_that_is_only_measured_pretrains_nothing(small_config: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise AssertionError("pretrained")

    monkeypatch.setattr(captioning, "pretrain", fail)
    settings = {**SMALL, "kimg": 0.04}
    session = prepare(TrainConfig.parse(small_config(terms={"caption": settings})), measured=True)
    assert not any(parameter.requires_grad for parameter in captioner_of(session).parameters())


def test_a_stream_has_no_captioner(small_config: Callable[..., dict[str, Any]]) -> None:
    config = small_config(terms={"caption": SMALL})
    config["data"] = {**config["data"], "stream": True}
    with pytest.raises(UsageError, match=r"terms\.caption needs the whole data set packed"):
        TrainConfig.parse(config)
