"""The model that a command measures, and its data."""

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

    from gan_t2i.data.packing import PackedDataset
    from gan_t2i.data.settings import DataConfig
    from gan_t2i.evaluation.features import FeatureSpace
    from gan_t2i.evaluation.retrieval import RetrievalTask
    from gan_t2i.runs import RunFolder
    from gan_t2i.sampling.pipeline import Text2Image

log = logging.getLogger(__name__)


@dataclass
class Subject:
    """The model to measure and the data to compare it with, both loaded on first use."""

    snapshot: Path
    run: "RunFolder | None"
    data: str | None
    text_encoder: str | None
    device: str

    @functools.cached_property
    def pipeline(self) -> "Text2Image":
        from gan_t2i.sampling.pipeline import Text2Image

        return Text2Image.load(self.snapshot, text_encoder=self.text_encoder, device=self.device)

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> "list[Image.Image]":
        """Pictures, prompt by prompt, each with its seeds in order."""
        return self.pipeline.generate(prompts, seeds=seeds)

    @functools.cached_property
    def trained_on(self) -> "DataConfig | None":
        """The run's data; None for a snapshot outside of a run folder."""
        from gan_t2i.core.config import read_yaml
        from gan_t2i.training.config import TrainConfig

        return None if self.run is None else TrainConfig.parse(read_yaml(self.run.config)).data

    @functools.cached_property
    def dataset(self) -> "PackedDataset":
        """The pictures of --data, else of the run, at the model's resolution.

        Raises `UsageError` where they are unknown or streamed, and warns where the model was trained on others.
        """
        from gan_t2i.core.errors import UsageError
        from gan_t2i.data.builtin import resolve_source
        from gan_t2i.data.packing import PackedDataset, is_packed, load_dataset
        from gan_t2i.data.settings import DataConfig

        if self.data is not None:
            settings = DataConfig(source=self.data, alpha=self.pipeline.info.has_alpha)
        elif self.trained_on is not None:
            settings = self.trained_on
        else:
            raise UsageError("a snapshot outside of a run folder does not say which data it was trained on: name them with --data")
        settings.require_packed("this measure", "name a set that fits into the cache with --data")
        info = self.pipeline.info
        source = resolve_source(settings.source, info.resolution, settings)
        if isinstance(source, Path) and is_packed(source):
            settings = settings.model_copy(update={"alpha": PackedDataset.open(source).channels == 4})
        dataset = load_dataset(source, info.resolution, settings)
        if dataset.fingerprint != info.data_fingerprint:
            log.warning("these are not the pictures and captions that the model was trained on: both sides may be new to it, or neither")
        return dataset

    def check_features(self, names: Sequence[str]) -> None:
        """Raises `UsageError` for an unknown network; warns of one like that whose features the decoder was trained on."""
        from gan_t2i.core.config import read_yaml
        from gan_t2i.evaluation.features import check_names

        config = read_yaml(self.run.config) if self.run else {}
        rebuilding = (config.get("decoder", {}), config.get("autoencoder", {}).get("params", {}))
        check_names(names)
        if self.run is None and "efficientnet-lite2" in names:
            log.warning("a snapshot outside of a run folder does not say whether its decoder was trained on features like efficientnet-lite2's")
        elif any(part.get("perceptual") for part in rebuilding) and "efficientnet-lite2" in names:
            log.warning("the decoder was trained on features of EfficientNet-lite0, so efficientnet-lite2, its sibling, favours this model")

    def open_spaces(self, names: Sequence[str]) -> "list[FeatureSpace]":
        """The named feature networks on the model's device; the matcher is that of `evaluate retrieval`, trained on first use."""
        from gan_t2i.evaluation.features import open_space

        return [open_space(name, self.pipeline.device, lambda: self.retrieval_task.matcher) for name in names]

    @functools.cached_property
    def retrieval_task(self) -> "RetrievalTask":
        from gan_t2i.evaluation.retrieval import prepare_retrieval

        return prepare_retrieval(self.dataset, self.pipeline.encoder, self.pipeline.device)
