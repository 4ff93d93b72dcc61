"""The captioner learns from real pairs what captions say, is kept, and teaches G without being taught by it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from gan_t2i.core.errors import UsageError
from gan_t2i.core.files import cache_dir
from gan_t2i.core.images import from_uint8
from gan_t2i.data.packing import PackedDataset
from gan_t2i.models.captioner import Captioner
from gan_t2i.pretraining import captioner as captioning
from gan_t2i.training.config import CaptionerTraining, TrainConfig
from gan_t2i.training.session import Session, prepare

MakeSession = Callable[..., Session]
SIZE = {"channel_base": 256, "channel_max": 32, "width": 32, "layers": 2, "heads": 2, "vocabulary_size": 100, "max_tokens": 12}
SMALL = {"weight": 1.0, "size": SIZE, "kimg": 0.064, "batch": 8}
CPU = torch.device("cpu")


def taught(dataset: PackedDataset, **changes: Any) -> Captioner:
    config = CaptionerTraining.model_validate({**SMALL, **changes})
    captioner = captioning.build_captioner(config, dataset, 0, CPU)
    captioning.teach(captioner, config, dataset, 0, CPU, "float32")
    return captioner


@torch.no_grad()
def told(captioner: Captioner, dataset: PackedDataset, captions: list[str]) -> torch.Tensor:
    """Of the training pictures, each with its own of `captions`."""
    return captioner(from_uint8(dataset.gather(dataset.train)), captioner.tokenize(captions))


def test_it_learns_what_the_captions_say(make_session: MakeSession) -> None:
    dataset = make_session().dataset
    own = [dataset.captions[dataset.caption_ids[item][0]] for item in dataset.train.tolist()]
    others = [own[-1], *own[:-1]]
    before = captioning.build_captioner(CaptionerTraining.model_validate(SMALL), dataset, 0, CPU)
    after = taught(dataset, kimg=2, learning_rate=3e-3, noise=0.1)
    assert (told(before, dataset, own) > told(before, dataset, others)).float().mean() < 0.9
    assert (told(after, dataset, own) > told(after, dataset, others)).all()
    assert told(after, dataset, own).mean() > -0.4


def test_it_is_taught_once_for_all_runs_of_the_same_data(make_session: MakeSession, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    teach = captioning.teach
    monkeypatch.setattr(captioning, "teach", lambda *arguments: (calls.append(1), teach(*arguments)))
    settings = {**SMALL, "kimg": 0.048}  # of no other test
    first = make_session(captioner=settings).networks.captioner
    again = make_session(captioner={**settings, "weight": 0.5}).networks.captioner
    assert first is not None
    assert again is not None
    assert len(calls) == 1
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    make_session(captioner={**settings, "noise": 0.2})
    make_session(captioner=settings, seed=1)
    assert len(calls) == 3


def test_a_damaged_file_is_taught_again(make_session: MakeSession, small_config: Callable[..., dict[str, Any]], said: list[str]) -> None:
    settings = {**SMALL, "kimg": 0.056}
    before = set((cache_dir() / "captioners").glob("*"))
    first = make_session(captioner=settings).networks.captioner
    [path] = set((cache_dir() / "captioners").glob("*")) - before
    path.write_bytes(path.read_bytes()[:-100])
    again = prepare(TrainConfig.parse(small_config(captioner=settings))).networks.captioner
    assert any("taught again" in line for line in said)
    assert first is not None
    assert again is not None
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_g_alone_is_taught_by_it(make_session: MakeSession) -> None:
    """D's step is the same with a captioner as without one, G's is another, and the captioner stays as it is."""
    without, with_it = make_session(), make_session(captioner=SMALL)
    assert without.networks.captioner is None
    captioner = with_it.networks.captioner
    assert captioner is not None
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
    session = make_session(captioner={**SMALL, "noise": 1.0})
    captioner = session.networks.captioner
    assert captioner is not None
    looked: list[torch.Tensor] = []
    captioner.register_forward_pre_hook(lambda module, given: looked.append(given[0].detach()))
    drawn: list[torch.Tensor] = []
    session.networks.G.register_forward_hook(lambda module, given, output: drawn.append(output.detach()))
    session.run_step(0)
    strengths = (looked[0] - drawn[0]).flatten(1).std(dim=1)
    assert ((strengths > 0) & (strengths < 1.1)).all()
    assert strengths.max() > 1.5 * strengths.min()  # another for each picture


@pytest.mark.slow
def test_g_learns_to_be_told(make_session: MakeSession) -> None:
    """Beside a D that hardly moves, G's pictures come to be told by the captioner, as those without its pull do not."""
    rates = {"g_lr": 2e-3, "d_lr": 1e-9, "warmup_kimg": 0}
    caption_loss = {}
    for weight in (1e-9, 10.0):
        session = make_session(captioner={**SMALL, "weight": weight, "kimg": 1}, optimizer=rates, loss={"match_weight": 0})
        caption_loss[weight] = [session.run_step(nimg)["Loss/G/caption"].item() for nimg in range(0, 600, 4)]
    assert sum(caption_loss[10.0][-20:]) < 0.8 * sum(caption_loss[1e-9][-20:])


def test_only_measuring_teaches_nothing(small_config: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise AssertionError("taught")

    monkeypatch.setattr(captioning, "teach", fail)
    settings = {**SMALL, "kimg": 0.04}
    session = prepare(TrainConfig.parse(small_config(captioner=settings)), measured=True)
    assert session.networks.captioner is not None


def test_a_stream_has_no_captioner(small_config: Callable[..., dict[str, Any]]) -> None:
    config = small_config(captioner=SMALL)
    config["data"] = {**config["data"], "stream": True}
    with pytest.raises(UsageError, match=r"captioner\.weight"):
        TrainConfig.parse(config)
