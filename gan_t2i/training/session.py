"""The parts of a run: device, data, text encoder, networks, losses. Whatever is missing is found here, before the first step."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from gan_t2i import registry
from gan_t2i.checkpoint import BuildSpec, EncoderRecord, ModelCard, SnapshotInfo
from gan_t2i.core.distributed import first_of_node_first, from_first, own_rows, rank, world_size
from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.core.files import cache_dir
from gan_t2i.core.images import from_uint8
from gan_t2i.core.phases import phase
from gan_t2i.core.runtime import pick_device, seeded_rng, set_gpu_arithmetic
from gan_t2i.core.weights import hash_state
from gan_t2i.data.batches import open_batches
from gan_t2i.data.batches.sampler import Batch, BatchSampler, Sampler
from gan_t2i.data.builtin import BUILTIN
from gan_t2i.data.latents import load_latents
from gan_t2i.data.packing import PackedDataset
from gan_t2i.losses.term import LossTerm, RunParts
from gan_t2i.models.autoencoders.base import Autoencoder
from gan_t2i.pretraining.autoencoder import ReadyAutoencoder, encode, ready_autoencoder
from gan_t2i.pretraining.rebuilding import find_features
from gan_t2i.sampling.publish import card_of
from gan_t2i.text.batch import TextBatch
from gan_t2i.text.cache import TextCache
from gan_t2i.text.encoder import SentenceEncoder, build_encoder, interface_for
from gan_t2i.training.config import TrainConfig
from gan_t2i.training.networks import Networks, build_networks, check_networks, latent_interface
from gan_t2i.training.resident import Resident, make_resident, room
from gan_t2i.training.step import TrainStep
from gan_t2i.training.warm_start import data_fingerprint, init_source

log = logging.getLogger(__name__)


@dataclass
class Session:
    """The parts of a run, made by `prepare`.

    `dataset` and `cache` serve everything but training, whose images come from `sampler`; see `TrainingData`.
    """

    config: TrainConfig
    device: torch.device
    dataset: PackedDataset
    encoder: SentenceEncoder
    encoder_interface: dict[str, object]
    cache: TextCache
    networks: Networks
    sampler: BatchSampler
    terms: dict[str, LossTerm]
    """Active auxiliary losses by name."""
    autoencoder: ReadyAutoencoder
    """The autoencoder in `networks`, with its record."""
    step: TrainStep = field(init=False)

    def __post_init__(self) -> None:
        resident, length = Resident(), self.encoder.max_tokens  # of captions that come with a stream
        if isinstance(self.sampler, Sampler):
            resident, length = make_resident(self.sampler, self.cache, self.device, room(self.device)), self.cache.length
        self.step = TrainStep(self.networks, list(self.terms.values()), self.config, self.device, resident, length)

    @property
    def parts(self) -> RunParts:
        """Parts of the run that auxiliary losses prepare themselves with."""
        config, networks = self.config, self.networks
        where = (self.device, config.seed, config.precision)
        return RunParts(self.dataset, self.encoder, self.cache, *where, networks.autoencoder, networks.G, networks.G_ema, config.loss)

    def run_step(self, nimg: int) -> dict[str, torch.Tensor]:
        """Train on the images nimg .. nimg + batch once; returns the step's metrics."""
        with phase("data"):
            batch = self.sampler.batch(nimg, self.config.batch, own_rows(self.config.batch))
        # Captions that a batch brings itself hardly recur, and their bits depend on those encoded beside them: none is cached.
        encode = partial(self._encode, batch.texts) if batch.texts else self.cache.gather
        return self.step(batch, encode, nimg)

    def _encode(self, texts: Sequence[str], ids: torch.Tensor) -> TextBatch:
        return self.encoder.encode([texts[index] for index in ids.tolist()])

    @cached_property
    def _preview_sampler(self) -> Sampler:
        return Sampler(self.dataset, self.config.seed)

    def preview_batch(self, count: int) -> Batch:
        """Return the same `count` training images at every call, to look at."""
        return self._preview_sampler.batch(0, count)

    @torch.no_grad()
    def rebuilt(self, images: torch.Tensor) -> torch.Tensor:
        """Pass uint8 images [N, C, R, R] through the autoencoder; returns them in [-1, 1], on the device."""
        return self.networks.autoencoder.rebuild(from_uint8(images.to(self.device)))

    def heldout_batch(self, limit: int = 64) -> tuple[torch.Tensor, TextBatch] | None:
        """Return up to `limit` held-out images in [-1, 1] with their first captions, no caption twice; None with fewer than two captions."""
        first_item: dict[int, int] = {}
        for item in self.dataset.heldout.tolist():
            first_item.setdefault(self.dataset.caption_ids[item][0], item)
        ids, items = list(first_item)[:limit], list(first_item.values())[:limit]
        if len(ids) < 2:
            return None
        return self.latents(self.dataset.gather_packed(items)), self.cache.gather(ids).to(self.device)

    def latents(self, images: torch.Tensor) -> torch.Tensor:
        """Return what D judges of real uint8 images [N, C, R, R] as packed, on the device: latents, or pixels in [-1, 1] over grey."""
        return self.parts.latents(images)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of everything that must be unchanged when a run resumes."""
        encoder = self.encoder
        text = f"{encoder.weights_hash[:32]}{encoder.pipeline_hash[:32]}"
        return {"data set": self.dataset.fingerprint, "text encoder": text}

    def snapshot_info(self, nimg: int) -> SnapshotInfo:
        """Return the description that goes into a snapshot after `nimg` images."""
        config, encoder = self.config, self.encoder
        interface = network_interface(config, encoder, self.networks.autoencoder)
        text_encoder = BuildSpec("text_encoder", config.text_encoder.name, shareable(encoder.params), dict(self.encoder_interface))
        return SnapshotInfo(
            generator=BuildSpec("generator", config.generator.name, config.generator.params, interface),
            autoencoder=self._autoencoder_spec(),
            encoder=EncoderRecord(text_encoder, encoder.id, encoder.revision, encoder.weights_hash),
            nimg=nimg,
            data_fingerprint=self.dataset.fingerprint,
            data_name=Path(config.data.source).resolve().name,
            card=self._builtin_card,
        )

    @cached_property
    def _builtin_card(self) -> ModelCard | None:
        """The card of a model of a built-in set; None for captions of people, whose words stay with them."""
        source, captions = self.config.data.source, self.dataset.train_caption_ids
        if source not in BUILTIN or not captions:
            return None
        return card_of(self.dataset, f"Trained on gan_t2i's built-in set {source}.", self.dataset.captions[captions[0]])

    def _autoencoder_spec(self) -> BuildSpec | None:
        config = self.config
        if self.networks.autoencoder.is_identity:
            return None
        interface = {"resolution": config.resolution, "channels": config.data.channels}
        params = {**config.autoencoder.params, **self.networks.autoencoder.own_params}
        return BuildSpec("autoencoder", config.autoencoder.name, shareable(params), interface)


def shareable(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's settings with a local folder by its name alone: a snapshot is shared, and whole paths tell of their owner."""
    model = params.get("model")
    return {**params, "model": Path(model).name} if model and Path(model).is_dir() else dict(params)


def network_interface(config: TrainConfig, encoder: SentenceEncoder, autoencoder: Autoencoder) -> dict[str, int]:
    """Return the run-time arguments of the generator."""
    return {**latent_interface(config, autoencoder), "text_width": encoder.width, "max_tokens": encoder.max_tokens}


def prepare(config: TrainConfig, *, measured: bool = False, text_folder: Path | None = None, source: Path | None = None) -> Session:
    """Build the parts of a run and log each; raises `GanT2IError` where one cannot be had.

    `measured`: the run is only to be measured, so that its captioner need not have learned anything. `text_folder`: where embeddings go that
    nobody will use again; without it they go to the user's cache. `source`: a state that the run goes on from, whose autoencoder it
    keeps; without it, a run with `init` trains that one's further, or keeps it for the same pictures.
    Of several processes, the first of each node packs, encodes and teaches; the others find what it made.
    """
    if config.batch % (world_size() * config.accumulation):
        raise UsageError(f"batch {config.batch} must be a multiple of {world_size()} processes times accumulation {config.accumulation}")
    with first_of_node_first():
        session = _prepare(config, measured, text_folder, source)
    if world_size() == 1:
        return session
    theirs = from_first(session.fingerprints)
    if different := [name for name, fingerprint in session.fingerprints.items() if fingerprint != theirs[name]]:
        raise GanT2IError(f"the {' and the '.join(different)} of process {rank()} is not the first process's: give every node the same")
    return session


def _latents_of(network: Autoencoder, dataset: PackedDataset) -> Callable[[Sequence[int]], torch.Tensor]:
    """Return a function that reads the latents of pictures by their indices, from the cache."""
    folder = cache_dir() / "latents" / f"{dataset.fingerprint[:32]}-{hash_state(network)[:32]}"
    return load_latents(dataset, folder, lambda images: encode(network, images)).gather


def _noise_of(network: Autoencoder, resolution: int) -> Callable[[Sequence[int]], torch.Tensor]:
    """Return the same for a run that is only measured: a step takes as long with noise, which needs no encoding and no place on the disk."""
    side = resolution // network.factor
    latent = torch.randn(1, network.latent_channels, side, side, generator=seeded_rng("measured")).half()
    return lambda items: latent.repeat(len(items), 1, 1, 1)


def _prepare(config: TrainConfig, measured: bool, text_folder: Path | None, source: Path | None) -> Session:
    device = pick_device(config.device)
    if device.type == "cuda":
        set_gpu_arithmetic(fixed_order=config.deterministic, exact_convolutions=config.penalty.name == "finite_difference")
    # what cannot be had is missed before the data are touched: features, the networks, and an encoder that needs no captions
    if config.decoder.perceptual or config.autoencoder.params.get("perceptual"):
        log.info(f"features of the rebuilding loss: {find_features()}")
    check_networks(config)
    learns = registry.lookup("text_encoder", config.text_encoder.name).learns_from_captions
    encoder = None if learns else build_encoder(config.text_encoder.name, config.text_encoder.params, {})
    terms = config.build_terms()
    data = open_batches(config.data, config.resolution, terms["mismatch"].config.negatives)
    dataset = data.dataset
    interface = interface_for(config.text_encoder.name, config.text_encoder.params, data.train_captions)
    if encoder is None:
        encoder = build_encoder(config.text_encoder.name, config.text_encoder.params, interface)
    cache = TextCache.build(encoder, data.captions, folder=text_folder)
    if len({dataset.caption_ids[item][0] for item in dataset.heldout}) < 2:
        log.warning("fewer than two captions are held out, so Text/match_gap is not measured: add pictures, or raise data.holdout_fraction")
    sampler = data.sampler(config.seed, cache.pooled)
    init = init_source(config.init) if source is None and config.init is not None else None
    if init is not None and data_fingerprint(init) == dataset.fingerprint:
        source, init = init, None  # it has seen these very pictures
    autoencoder = ready_autoencoder(
        config.autoencoder,
        dataset,
        device=device,
        seed=config.seed,
        precision=config.precision,
        source=source,
        init=init,
        trained=not measured,
    )
    if isinstance(sampler, Sampler) and not autoencoder.network.is_identity:
        sampler.gather = _noise_of(autoencoder.network, config.resolution) if measured else _latents_of(autoencoder.network, dataset)
    networks = build_networks(config, network_interface(config, encoder, autoencoder.network), autoencoder.network, device)
    active = {name: term for name, term in terms.items() if term.active}
    session = Session(config, device, dataset, encoder, interface, cache, networks, sampler, active, autoencoder)
    for term in active.values():
        networks.auxiliary |= term.prepare(session.parts, pretrained=not measured)
    return session
