"""The autoencoder of a run: its training, its cache, its checks, and the latents that follow from it."""

import itertools
import math
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gan_t2i import registry
from gan_t2i.checkpoint import read_metadata, read_tensors, write_tensors
from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.data.packing import PackedDataset
from gan_t2i.models.autoencoders.conv import ConvConfig
from gan_t2i.pretraining import autoencoder as module
from gan_t2i.pretraining import autoencoder_training as training_module
from gan_t2i.pretraining.autoencoder import ReadyAutoencoder, build_autoencoder, encode, ready_autoencoder
from gan_t2i.pretraining.autoencoder_training import AutoencoderTraining
from gan_t2i.registry import Spec
from gan_t2i.training.config import TrainConfig
from gan_t2i.training.session import prepare

PARAMS = {"factor": 2, "latent_channels": 6, "width": 16, "kimg": 1.6, "batch": 8, "learning_rate": 4e-3}
SPEC = Spec(name="conv", params=registry.config_for("autoencoder", "conv", PARAMS).model_dump(mode="json"))
CPU: dict[str, Any] = {"device": torch.device("cpu"), "seed": 0, "precision": "float32"}


@pytest.fixture(scope="module")
def dataset(small_config: Callable[..., dict[str, Any]], many_pictures: Path) -> PackedDataset:
    return prepare(TrainConfig.parse(small_config(data={"source": str(many_pictures)}))).dataset


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GAN_T2I_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture(autouse=True, scope="module")
def _a_little_is_enough(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GAN_T2I_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        patch.setattr(module, "LEAST_PSNR", 14.0)
        yield


@pytest.fixture(scope="module")
def ready(dataset: PackedDataset) -> ReadyAutoencoder:
    return ready_autoencoder(SPEC, dataset, **CPU)


def test_it_rebuilds_pictures_and_its_latents_are_standard(ready: ReadyAutoencoder, dataset: PackedDataset) -> None:
    assert ready.psnr is not None
    assert ready.psnr > 17
    assert ready.losses[-1][1] < ready.losses[0][1] / 2 or len(ready.losses) == 1
    latents = encode(ready.network, dataset.gather_packed(dataset.train))
    assert latents.shape == (len(dataset.train), 6, 8, 8)
    assert latents.mean(dim=(0, 2, 3)).abs().max() < 1e-4
    assert (latents.std(dim=(0, 2, 3)) - 1).abs().max() < 1e-3


def test_a_second_run_loads_it_and_another_seed_trains_its_own(
    ready: ReadyAutoencoder, dataset: PackedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(self: AutoencoderTraining) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(AutoencoderTraining, "run", never)
    again = ready_autoencoder(SPEC, dataset, **CPU)
    assert again.psnr == ready.psnr
    assert all(torch.equal(a, b) for a, b in zip(again.network.state_dict().values(), ready.network.state_dict().values(), strict=True))
    with pytest.raises(AssertionError, match="trained again"):
        ready_autoencoder(SPEC, dataset, **{**CPU, "seed": 1})


def test_a_run_takes_over_that_of_its_source_where_the_sizes_are_its_own(
    ready: ReadyAutoencoder, dataset: PackedDataset, tmp_path: Path, said: list[str]
) -> None:
    source = tmp_path / "state.safetensors"
    write_tensors(source, {f"autoencoder/{name}": x + 1 for name, x in ready.network.state_dict().items()}, {})
    taken = ready_autoencoder(SPEC, dataset, **CPU, source=source)
    assert taken.taken_over
    assert all(torch.equal(a, b + 1) for a, b in zip(taken.network.state_dict().values(), ready.network.state_dict().values(), strict=True))
    write_tensors(source, {f"autoencoder/{name}": x[..., :1] for name, x in ready.network.state_dict().items()}, {})
    own = ready_autoencoder(SPEC, dataset, **CPU, source=source)
    assert not own.taken_over
    assert own.psnr == ready.psnr
    assert f"autoencoder: that of {source} has other sizes, so this run has its own" in said


def test_training_goes_on_from_that_of_init(
    ready: ReadyAutoencoder, dataset: PackedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    init = tmp_path / "state.safetensors"
    begun = {name: x if name in ("mean", "std") else x * 1.01 for name, x in ready.network.state_dict().items()}
    write_tensors(init, {f"autoencoder/{name}": x for name, x in begun.items()}, {})
    monkeypatch.setattr(module, "LEAST_PICTURES", 10**6)  # those of its source were enough
    further = ready_autoencoder(SPEC, dataset, **CPU, init=init)
    assert not further.taken_over
    assert further.psnr != ready.psnr
    for name, x in further.network.state_dict().items():
        assert torch.equal(x, begun[name]) == (name in ("mean", "std")), name
    monkeypatch.setattr(AutoencoderTraining, "run", lambda self: pytest.fail("trained again"))
    assert ready_autoencoder(SPEC, dataset, **CPU, init=init).psnr == further.psnr


@pytest.mark.parametrize("stopped_after", [8, 6])
def test_a_training_that_was_stopped_ends_with_the_same_bits(
    dataset: PackedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_after: int
) -> None:
    """After 8 steps a position has just been saved; after 6 there is none yet, and the training starts again."""
    monkeypatch.setattr(training_module, "SAVED_EVERY", 8)
    config = registry.config_for("autoencoder", "conv", {**PARAMS, "kimg": 0.09})

    def train(position: Path) -> dict[str, torch.Tensor]:
        network = build_autoencoder(SPEC, dataset, 0)
        AutoencoderTraining(network, config, dataset, position, **CPU).run()  # type: ignore[arg-type]
        return network.state_dict()

    step, steps = AutoencoderTraining.step, itertools.count()

    def stop(self: AutoencoderTraining) -> torch.Tensor:
        if next(steps) == stopped_after:
            raise KeyboardInterrupt
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(AutoencoderTraining, "step", stop)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "a")
    assert (tmp_path / "a").is_file() == (stopped_after == 8)
    stopped, unbroken = train(tmp_path / "a"), train(tmp_path / "b")
    assert [name for name in unbroken if not torch.equal(stopped[name], unbroken[name])] == []


def test_a_request_to_stop_saves_the_position_and_is_obeyed(
    dataset: PackedDataset, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = registry.config_for("autoencoder", "conv", {**PARAMS, "kimg": 0.09})
    step, steps = AutoencoderTraining.step, itertools.count()

    def stop(self: AutoencoderTraining) -> torch.Tensor:
        if next(steps) == 2:
            signal.raise_signal(signal.SIGINT)
        return step(self)

    monkeypatch.setattr(AutoencoderTraining, "step", stop)

    def train() -> None:
        AutoencoderTraining(build_autoencoder(SPEC, dataset, 0), config, dataset, tmp_path / "a", **CPU).run()  # type: ignore[arg-type]

    with pytest.raises(KeyboardInterrupt):
        train()
    assert read_metadata(tmp_path / "a")["nimg"] == 3 * config.batch  # type: ignore[attr-defined]
    assert any(line.startswith("autoencoder: stopped after") for line in said)
    train()
    assert next(steps) == math.ceil(90 / config.batch)  # type: ignore[attr-defined]


def test_wide_networks_learn_more_slowly() -> None:
    rates = [ConvConfig(width=width).rate for width in (16, 48, 96)]
    assert rates == [2e-3, 2e-3, 5e-4]
    assert ConvConfig(width=96, learning_rate=1e-3).rate == 1e-3


@pytest.mark.parametrize("lost", ["average/3", "adam/3/exp_avg", "network/mean"])
def test_a_damaged_position_leaves_nothing_behind(
    dataset: PackedDataset, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    monkeypatch.setattr(training_module, "SAVED_EVERY", 4)
    config = registry.config_for("autoencoder", "conv", {**PARAMS, "kimg": 0.032})

    def train() -> dict[str, torch.Tensor]:
        network = build_autoencoder(SPEC, dataset, 0)
        AutoencoderTraining(network, config, dataset, tmp_path / "position", **CPU).run()  # type: ignore[arg-type]
        return network.state_dict()

    first = train()
    tensors, metadata = read_tensors(tmp_path / "position")
    del tensors[lost]
    write_tensors(tmp_path / "position", tensors, metadata)
    again = train()
    assert any("trained from the start" in line for line in said)
    assert [name for name in first if not torch.equal(first[name], again[name])] == []


def test_a_damaged_cache_is_trained_again_with_a_word(dataset: PackedDataset, cache: Path, said: list[str]) -> None:
    short = Spec(name="conv", params={**SPEC.params, "kimg": 0.8})
    first = ready_autoencoder(short, dataset, **CPU)
    [file] = (cache / "autoencoders").iterdir()
    file.write_bytes(b"nothing")
    said.clear()
    again = ready_autoencoder(short, dataset, **CPU)
    assert any("trained again" in line for line in said)
    assert again.psnr == first.psnr


def test_refusals(dataset: PackedDataset, cache: Path, monkeypatch: pytest.MonkeyPatch, small_config: Callable[..., dict[str, Any]]) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "LEAST_PICTURES", 1000)
        with pytest.raises(GanT2IError, match=r"needs at least 1000 training pictures, and there are .*autoencoder={name: pixels}"):
            ready_autoencoder(SPEC, dataset, **CPU)
    with pytest.raises(GanT2IError, match=r"rebuilds held-out pictures at \d+\.\d dB, and 14 are needed: raise autoencoder.params.kimg"):
        ready_autoencoder(Spec(name="conv", params={**SPEC.params, "kimg": 0.016}), dataset, **CPU)
    config = TrainConfig.parse(small_config(autoencoder={"name": "conv", "params": {"factor": 4}}))
    with pytest.raises(
        UsageError, match=r"at 16 px its latents are 4 on a side, and the networks need 8: set autoencoder.params.factor to at most 2"
    ):
        prepare(config)
