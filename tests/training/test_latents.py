"""A run in the latents of an autoencoder: what its files hold."""

import os
import signal
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gan_t2i.checkpoint import load_snapshot, read_info, read_metadata, read_tensors, write_tensors
from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.core.images import from_uint8
from gan_t2i.losses.inputs import StepNoise
from gan_t2i.losses.terms.reconstruction import nearest_z
from gan_t2i.models.latent_generator import LatentGenerator
from gan_t2i.pretraining.autoencoder import ReadyAutoencoder
from gan_t2i.pretraining.autoencoder_training import AutoencoderTraining
from gan_t2i.runs import RunFolder, list_runs
from gan_t2i.text.batch import TextBatch
from gan_t2i.training.config import TrainConfig
from gan_t2i.training.decoder import DecoderTraining
from gan_t2i.training.session import Session, prepare
from gan_t2i.training.state import Progress, read_progress

Start = Callable[..., tuple[RunFolder, None]]
PARAMS = {"factor": 2, "latent_channels": 6, "width": 16, "kimg": 0.08, "batch": 8}


@pytest.fixture
def settings(many_pictures: Path) -> dict[str, Any]:
    return {"autoencoder": {"name": "conv", "params": PARAMS}, "kimg": 0.008, "data": {"source": str(many_pictures)}}


def test_a_snapshot_holds_the_decoder_and_draws_pictures(
    start: Start, small_config: Callable[..., dict[str, Any]], settings: dict[str, Any]
) -> None:
    run, _ = start(**settings)
    snapshot = run.snapshots()[-1]
    generator, info = load_snapshot(snapshot)
    assert isinstance(generator, LatentGenerator)
    assert (info.resolution, info.has_alpha, generator.resolution, generator.G.resolution) == (16, False, 16, 8)
    assert read_info(snapshot).autoencoder is not None
    session = prepare(TrainConfig.parse(small_config(**settings)), source=run.state)
    images = session.preview_batch(2).images
    assert torch.equal(generator.autoencoder.rebuild(from_uint8(images)), session.rebuilt(images))


def test_all_evaluations_of_a_run_draw_with_one_generator(make_session: Callable[..., Session], settings: dict[str, Any]) -> None:
    """A GPU would capture the pictures of another one anew, in another stream, of which torch has 32."""
    networks = make_session(**settings).networks
    assert networks.images is networks.images
    assert isinstance(networks.images, LatentGenerator)


def test_a_run_keeps_its_autoencoder_when_the_cache_is_gone(
    start: Start, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run, _ = start(**settings)
    monkeypatch.setenv("GAN_T2I_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(AutoencoderTraining, "run", lambda self: pytest.fail("trained again"))
    again, _ = start(**{**settings, "kimg": 0.016}, resume=str(run.path))
    assert again == run


@pytest.mark.parametrize("snapshot", [False, True])
def test_a_run_with_init_keeps_the_autoencoder_for_the_same_pictures_and_trains_it_further_on_others(
    start: Start, small_config: Callable[..., dict[str, Any]], settings: dict[str, Any], transparent_pictures: Path, snapshot: bool
) -> None:
    run, _ = start(**settings)
    init = str(run.snapshots()[-1] if snapshot else run.path)

    def begun(source: object) -> ReadyAutoencoder:
        return prepare(TrainConfig.parse(small_config(**{**settings, "data": {"source": str(source)}, "init": init}))).autoencoder

    same, others = begun(settings["data"]["source"]), begun(transparent_pictures)
    assert (same.taken_over, others.taken_over) == (True, False)
    first, kept, further = (x.state_dict() for x in (load_snapshot(run.snapshots()[-1])[0].autoencoder, same.network, others.network))  # type: ignore[union-attr]
    assert all(torch.equal(first[name], kept[name]) for name in first)
    assert torch.equal(first["std"], further["std"])
    assert not torch.equal(first["decoder.0.weight"], further["decoder.0.weight"])


@pytest.fixture
def transparent_pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "transparent"
    folder.mkdir()
    for number in range(72):
        picture = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
        picture.paste((number * 3, 255 - number * 3, 90, 255), (2, 2, 12, 4 + number % 10))
        picture.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"tone {number}")
    return folder


def test_transparent_pictures_have_latents_and_come_back_transparent(
    start: Start, settings: dict[str, Any], transparent_pictures: Path
) -> None:
    run, _ = start(**{**settings, "data": {"source": str(transparent_pictures), "alpha": True}})
    generator, info = load_snapshot(run.snapshots()[-1])
    assert isinstance(generator, LatentGenerator)
    assert info.has_alpha
    assert generator.autoencoder.rebuild(torch.zeros(1, 4, 16, 16)).shape == (1, 4, 16, 16)


def test_a_stream_is_encoded_as_it_comes(start: Start, settings: dict[str, Any], transparent_pictures: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        for path in sorted(transparent_pictures.iterdir()):
            archive.add(path, path.name)
    run, _ = start(**{**settings, "data": {"source": str(tmp_path / "all.tar"), "stream": True}, "decoder": {"kimg": 0.05}})
    assert isinstance(load_snapshot(run.snapshots()[-1])[0], LatentGenerator)
    assert read_progress(run.state).decoder_finished


def test_a_run_that_is_only_measured_leaves_no_latents(
    small_config: Callable[..., dict[str, Any]], settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GAN_T2I_CACHE", str(tmp_path / "cache"))
    session = prepare(TrainConfig.parse(small_config(**settings)), measured=True)
    session.run_step(0)
    assert not {path.name for path in (tmp_path / "cache").iterdir()} & {"latents", "autoencoders"}


def test_the_records_show_the_autoencoder(start: Start, settings: dict[str, Any]) -> None:
    run, _ = start(**settings)
    events = EventAccumulator(str(run.path)).Reload()
    assert {"Autoencoder/loss", "Autoencoder/heldout_psnr", "Latents/mean", "Latents/std"} <= {*events.Tags()["scalars"]}
    assert "Autoencoder/real_above_rebuilt" in events.Tags()["images"]


def test_the_decoder_learns_from_what_the_generator_draws(start: Start, settings: dict[str, Any]) -> None:
    plain, _ = start(**settings)
    run, _ = start(**settings, decoder={"kimg": 0.05})
    before, after = (load_snapshot(folder.snapshots()[-1])[0].state_dict() for folder in (plain, run))
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed
    assert all(name.startswith("autoencoder.decoder.") for name in changed)
    assert [event.step for event in EventAccumulator(str(run.path)).Reload().Scalars("Decoder/loss")] == [16, 24, 28, 32, 40, 48, 56, 60]
    assert read_progress(run.state) == Progress(8, decoder_nimg=52, decoder_finished=True)
    longer, _ = start(**{**settings, "kimg": 0.016}, decoder={"kimg": 0.05}, resume=str(run.path))
    assert longer == run
    assert read_progress(run.state) == Progress(16, decoder_nimg=52, decoder_finished=True)


def test_the_generator_learns_with_the_decoder(start: Start, settings: dict[str, Any]) -> None:
    plain, _ = start(**settings)
    run, _ = start(**settings, decoder={"kimg": 0.05, "g_lr": 1e-3})
    before, after = (load_snapshot(folder.snapshots()[-1])[0].state_dict() for folder in (plain, run))
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert {name.partition(".")[0] for name in changed} == {"autoencoder", "G"}
    assert all(name.startswith(("autoencoder.decoder.", "G.")) for name in changed)
    ours, theirs = (read_tensors(folder.state)[0] for folder in (plain, run))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items() if name.startswith(("G/", "D/")))  # the run can go on


def test_patches_change_what_the_decoder_learns(start: Start, settings: dict[str, Any]) -> None:
    runs = [start(**settings, decoder={"kimg": 0.05, "adversarial": weight}, resume="never")[0] for weight in (0.0, 0.5, 0.5)]
    states = [load_snapshot(run.snapshots()[-1])[0].state_dict() for run in runs]
    assert all(torch.equal(tensor, states[2][name]) for name, tensor in states[1].items())  # the same seed, the same weights
    changed = {name for name, tensor in states[0].items() if not torch.equal(tensor, states[1][name])}
    assert changed
    assert all(name.startswith("autoencoder.decoder.") for name in changed)


LESSON = {"kimg": 0.028, "g_lr": 1e-3, "adversarial": 0.5}


class Ends(Exception):
    """A run that ends without warning."""


@pytest.fixture
def end_in_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], list[int]]:
    """Calls `end` in the decoder's step that begins after `nimg` images, the first time; returns the list of where its steps began."""

    def plan(nimg: int, end: Callable[[], None]) -> list[int]:
        step, begun = DecoderTraining.step, list[int]()

        def watched(self: DecoderTraining, at: int) -> dict[str, torch.Tensor]:
            begun.append(at)
            if at == nimg and begun.count(nimg) == 1:
                end()
            return step(self, at)

        monkeypatch.setattr(DecoderTraining, "step", watched)
        return begun

    return plan


def crash() -> None:
    raise Ends


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("lesson", [{"kimg": 0.028}, LESSON])
@pytest.mark.parametrize("end", [stop, crash])
def test_the_same_command_finishes_a_decoder_bit_for_bit(
    start: Start,
    settings: dict[str, Any],
    end_in_step: Callable[[int, Callable[[], None]], list[int]],
    end: Callable[[], None],
    lesson: dict[str, Any],
) -> None:
    settings |= {"decoder": lesson, "report": {"snapshot_kimg": 0.008, "stats_kimg": 0.008, "grid_kimg": 1}}
    unbroken, _ = start(**settings, resume="never")
    begun = end_in_step(12, end)
    if end is stop:
        run, number = start(**settings, resume="never")
        assert number == signal.SIGTERM
        assert read_progress(run.state) == Progress(8, decoder_nimg=16)
    else:
        with pytest.raises(Ends):
            start(**settings, resume="never")
    again, number = start(**settings, resume="auto")
    assert again != unbroken
    assert number is None
    assert begun == [0, 4, 8, 12, *([16, 20, 24] if end is stop else [8, 12, 16, 20, 24])]
    first, second = (load_snapshot(folder.snapshots()[-1])[0].state_dict() for folder in (unbroken, again))
    assert all(torch.equal(first[name], second[name]) for name in first)
    ours, theirs = ([r for r in folder.records() if "Decoder/loss" in r] for folder in (unbroken, again))
    assert ours == theirs
    assert [record["nimg"] for record in ours] == [16, 24, 32, 36]
    assert not {name for name in read_tensors(again.state)[0] if name.startswith("decoder_training")}
    assert start(**settings, resume=str(again.path))[0] == again  # with nothing to do
    assert [r for r in again.records() if "Decoder/loss" in r] == ours
    assert start(**settings, resume="auto")[0] not in (unbroken, again)  # a new one, as that one is complete


def test_a_position_that_cannot_be_used_begins_the_lesson_again(
    start: Start, settings: dict[str, Any], end_in_step: Callable[[int, Callable[[], None]], list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    settings |= {"decoder": LESSON}
    begun = end_in_step(12, stop)
    run, _ = start(**settings)
    tensors, metadata = read_tensors(run.state)[0], read_metadata(run.state)
    name = "decoder_training/average/0"
    broken = {
        "missing": {key: tensor for key, tensor in tensors.items() if key != name},
        "not finite": tensors | {name: tensors[name] * torch.nan},
        "another shape": tensors | {name: torch.zeros(1)},
        "other weights": tensors | {"decoder_training/game/D/0": torch.zeros(1)},
    }
    for kind, faulty in broken.items():
        write_tensors(run.state, faulty, metadata)
        before = len(begun)
        caplog.clear()
        start(**settings, resume=str(run.path))
        assert begun[before:] == [0, 4, 8, 12, 16, 20, 24], kind
        assert "the decoder learns from the start" in caplog.text
        assert [record["nimg"] for record in run.records() if "Decoder/loss" in record] == [16, 24, 28, 32, 36]
    for nimg in (15, 4000):
        write_tensors(run.state, tensors, metadata | {"decoder_nimg": nimg})
        before = len(begun)
        start(**settings, resume=str(run.path))
        assert begun[before:] == [0, 4, 8, 12, 16, 20, 24]
    assert read_progress(run.state).decoder_finished


@pytest.mark.parametrize("broken", ["loss", "weights"])
def test_a_decoder_that_diverges_is_an_error_and_nothing_is_lost(
    start: Start, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, broken: str
) -> None:
    step = DecoderTraining.step

    def diverging(self: DecoderTraining, nimg: int) -> dict[str, torch.Tensor]:
        losses = step(self, nimg)
        if nimg == 12 and broken == "weights":
            self.adam.average[0].fill_(torch.nan)
        return {tag: loss * torch.nan for tag, loss in losses.items()} if nimg == 12 and broken == "loss" else losses

    monkeypatch.setattr(DecoderTraining, "step", diverging)
    settings |= {"decoder": LESSON, "report": {"snapshot_kimg": 0.008, "stats_kimg": 0.008, "grid_kimg": 1}}
    with pytest.raises(GanT2IError, match="the decoder's fine-tuning diverged within 16 images: lower "):
        start(**settings)
    [run] = list_runs(tmp_path / "runs")
    assert read_progress(run.state) == Progress(8, decoder_nimg=8)
    assert all(tensor.isfinite().all() for tensor in load_snapshot(run.snapshots()[-1])[0].state_dict().values())
    assert "NaN" not in run.stats.read_text()


def test_a_longer_game_drops_the_lesson_on_its_way(
    start: Start, settings: dict[str, Any], end_in_step: Callable[[int, Callable[[], None]], list[int]]
) -> None:
    settings |= {"decoder": LESSON}
    begun = end_in_step(12, stop)
    run, _ = start(**settings)
    start(**{**settings, "kimg": 0.016}, resume=str(run.path))
    assert begun == [0, 4, 8, 12, 0, 4, 8, 12, 16, 20, 24]
    steps = [record["nimg"] for record in run.records()]
    assert steps == sorted(steps)
    assert read_progress(run.state) == Progress(16, decoder_nimg=28, decoder_finished=True)


@pytest.mark.parametrize("name", ["pixels", "hub"])
def test_only_an_own_decoder_is_finished(small_config: Callable[..., dict[str, Any]], name: str) -> None:
    params = {"model": "folder"} if name == "hub" else {}
    with pytest.raises(UsageError, match=rf"decoder\.kimg trains the decoder of an autoencoder conv, and this is {name}: leave it out"):
        TrainConfig.parse(small_config(autoencoder={"name": name, "params": params}, decoder={"kimg": 1}))


def test_the_nearest_of_several_latents_is_trained(make_session: Callable[..., Session], monkeypatch: pytest.MonkeyPatch) -> None:
    session = make_session(terms={"reconstruction": {"weight": 1, "candidates": 3}})
    step, nimg, G = session.step, 0, session.networks.G
    batch = replace(session.sampler.batch(nimg, 4), shared=torch.tensor([True, False, True, True]))
    z = StepNoise.draw(0, nimg, 4, G.z_width, session.config.augment, 3).z
    micro = step.micro_batch(step.inputs(batch, session.cache.gather, nimg)[0])
    real = from_uint8(micro.images)
    with torch.no_grad():
        distances = torch.stack([(G(each, micro.own_text) - real).square().mean(dim=(1, 2, 3)) for each in z.unbind(1)])
    choices = distances.argmin(dim=0)
    assert choices.all()  # the first is nearest nowhere, so that a row that is not searched shows
    nearest = torch.where(batch.shared[:, None], z[torch.arange(4), choices], z[:, 0])
    assert torch.equal(nearest_z(G, z, micro.own_text, real, micro.searched), nearest)
    assert torch.equal(nearest_z(G, z[:, :1], micro.own_text, real, micro.searched), z[:, 0])
    drawn: list[torch.Tensor] = []
    G.register_forward_pre_hook(lambda network, inputs: drawn.append(inputs[0]))
    step(batch, session.cache.gather, nimg)
    assert [len(each) for each in drawn] == [3, 3, 3, 4]
    assert torch.equal(drawn[-1], nearest)
    drawn.clear()
    session.run_step(nimg)  # each of these captions has one image
    assert [len(each) for each in drawn] == [4]


def test_the_decoder_learns_from_the_nearest_candidate(start: Start, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Size] = []

    def watch(G: torch.nn.Module, z: torch.Tensor, text: TextBatch, real: torch.Tensor, searched: torch.Tensor) -> torch.Tensor:
        seen.append(z.shape)
        assert real.shape[1:] == (settings["autoencoder"]["params"]["latent_channels"], 8, 8)
        return nearest_z(G, z, text, real, searched)  # type: ignore[arg-type]

    monkeypatch.setattr("gan_t2i.training.decoder.nearest_z", watch)
    terms = {"reconstruction": {"weight": 1, "candidates": 3}}
    start(**{**settings, "terms": terms}, decoder={"kimg": 0.008}, resume="never")
    assert seen
    assert {shape[1] for shape in seen} == {3}
