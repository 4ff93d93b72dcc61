"""Everything a run needs before its first step: device, data, text, networks. Whatever can be missing is missed here, not later."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from gan_t2i.checkpoint import Built, EncoderRecord, SnapshotInfo
from gan_t2i.data.builtin import resolve_source
from gan_t2i.data.packing import PackedDataset, load_dataset
from gan_t2i.errors import GanT2IError
from gan_t2i.pictures import from_uint8
from gan_t2i.runtime import pick_device
from gan_t2i.text.batch import TextBatch
from gan_t2i.text.cache import TextCache
from gan_t2i.text.encoder import SentenceEncoder, build_encoder, interface_for
from gan_t2i.training.config import TrainConfig
from gan_t2i.training.sampler import Sampler
from gan_t2i.training.step import Networks, TrainStep, build_networks


@dataclass
class Session:
    """The parts of a run, made by `prepare`."""

    config: TrainConfig
    device: torch.device
    dataset: PackedDataset
    encoder: SentenceEncoder
    encoder_interface: dict[str, object]
    cache: TextCache
    networks: Networks
    sampler: Sampler = field(init=False)
    step: TrainStep = field(init=False)

    def __post_init__(self) -> None:
        self.sampler = Sampler(self.dataset, self.config.seed)
        self.step = TrainStep(self.networks, self.config, self.device)

    @property
    def interface(self) -> dict[str, int]:
        """What resolution and encoder dictate to the networks."""
        return network_interface(self.config, self.encoder)

    def run_step(self, nimg: int) -> dict[str, torch.Tensor]:
        """Show the pictures nimg .. nimg + batch once; returns the step's metrics."""
        images, ids = self.sampler.batch(nimg, self.config.batch)
        return self.step(images, self.cache.gather(ids), ids, nimg)

    def heldout_batch(self, limit: int = 64) -> tuple[torch.Tensor, TextBatch] | None:
        """Up to `limit` held-out pictures in [-1, 1] with their first captions, no caption twice; None with fewer than two captions."""
        first_item: dict[int, int] = {}
        for item in self.dataset.heldout.tolist():
            first_item.setdefault(self.dataset.caption_ids[item][0], item)
        ids, items = list(first_item)[:limit], list(first_item.values())[:limit]
        if len(ids) < 2:
            return None
        return from_uint8(self.dataset.gather(items)).to(self.device), self.cache.gather(ids).to(self.device)

    def snapshot_info(self, nimg: int) -> SnapshotInfo:
        """What a snapshot after `nimg` pictures says of itself."""
        config, encoder = self.config, self.encoder
        return SnapshotInfo(
            generator=Built("generator", config.generator.name, config.generator.params, dict(self.interface)),
            encoder=EncoderRecord(
                Built("text_encoder", config.text_encoder.name, encoder.params, dict(self.encoder_interface)),
                encoder.id,
                encoder.revision,
                encoder.weights_hash,
            ),
            nimg=nimg,
            data_fingerprint=self.dataset.fingerprint,
            # the folder's name alone: a snapshot is shared, and whole paths tell of their owner
            data_name=Path(config.data.source).name,
        )


def network_interface(config: TrainConfig, encoder: SentenceEncoder) -> dict[str, int]:
    """The run-time arguments of every generator and discriminator."""
    return {"resolution": config.resolution, "text_width": encoder.width, "max_tokens": encoder.max_tokens}


def prepare(config: TrainConfig, notify: Callable[[str], None]) -> Session:
    """Build the parts of a run and report each through `notify`; raises `GanT2IError` where one cannot be had."""
    device = pick_device(config.device)
    needs_captions = config.text_encoder.name == "tiny"
    encoder = None if needs_captions else build_encoder(config.text_encoder.name, config.text_encoder.params, {}, notify=notify)
    data = config.data
    dataset = load_dataset(
        resolve_source(data.source, config.resolution, notify=notify),
        config.resolution,
        caption_column=data.caption_column,
        on_bad=data.on_bad,
        holdout_fraction=data.holdout_fraction,
        notify=notify,
    )
    if config.loss.match_weight and len({ids[0] for ids in dataset.caption_ids}) < 2:
        raise GanT2IError("all pictures have the same caption: there is nothing to tell apart; caption them, or set loss.match_weight=0")
    interface = interface_for(config.text_encoder.name, config.text_encoder.params, dataset.captions)
    if encoder is None:
        encoder = build_encoder(config.text_encoder.name, config.text_encoder.params, interface, notify=notify)
    cache = TextCache.build(encoder, dataset.captions, notify=notify)
    networks = build_networks(config, network_interface(config, encoder), device)
    return Session(config, device, dataset, encoder, interface, cache, networks)
