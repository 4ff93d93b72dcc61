"""What a command holds a model against: the pictures that its run was trained on or others, and the networks to compare them in."""

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gan_t2i.data.packing import PackedDataset
    from gan_t2i.evaluation.features import FeatureSpace
    from gan_t2i.evaluation.matcher import Matcher
    from gan_t2i.runs import RunFolder
    from gan_t2i.sampling.pipeline import Text2Image
    from gan_t2i.training.config import DataConfig

log = logging.getLogger(__name__)


def data_settings(run: "RunFolder | None", data: str | None, chosen: Mapping[str, object]) -> "DataConfig":
    """Which data: those of `data`, read as `chosen`, else the run's own; raises `UsageError` where neither is known."""
    from gan_t2i.core.config import read_yaml
    from gan_t2i.core.errors import UsageError
    from gan_t2i.training.config import DataConfig, TrainConfig

    if data is not None:
        return DataConfig.parse({"source": data, **chosen})
    if run is None:
        raise UsageError("a snapshot outside of a run folder does not tell its data: name them with --data")
    if chosen:
        raise UsageError("how the data are read goes with --data; without it they are read as in training")
    return TrainConfig.parse(read_yaml(run.config)).data


def load_data(pipeline: "Text2Image", settings: "DataConfig") -> "PackedDataset":
    """The pictures at the model's resolution; says so where they are not those that it was trained on."""
    from gan_t2i.core.errors import UsageError
    from gan_t2i.data.builtin import resolve_source
    from gan_t2i.data.packing import load_dataset

    info = pipeline.info
    if settings.stream:
        raise UsageError("the measures pack their data, and this run streams them: name a set that the cache has room for with --data")
    source = resolve_source(settings.source, info.resolution, alpha=settings.alpha)
    dataset = load_dataset(source, info.resolution, settings)
    if dataset.fingerprint != info.data_fingerprint:
        log.warning("these are not the pictures and captions that the model was trained on: both sides may be new to it, or neither")
    return dataset


def check_features(names: Sequence[str], run: "RunFolder | None", default: Sequence[str]) -> tuple[str, ...]:
    """`names`, or the `default`; raises `UsageError` for one that is unknown or that the run's discriminator looked through."""
    from gan_t2i.core.config import read_yaml
    from gan_t2i.evaluation.features import check_names

    spec = read_yaml(run.config).get("discriminator") if run else None
    params = spec.get("params") if isinstance(spec, dict) else None
    backbone = params.get("backbone") if isinstance(params, dict) else None
    chosen = tuple(names or default)
    check_names(chosen, backbone)
    if run is None:
        log.warning(
            "a snapshot outside of a run folder does not tell what its discriminator looked through: measure with networks that it did not"
        )
    elif backbone and "efficientnet-lite2" in chosen:
        log.warning(f"the discriminator looked through {backbone}: where that has learned ImageNet too, efficientnet-lite2 flatters this model")
    return chosen


def open_spaces(names: Sequence[str], pipeline: "Text2Image", dataset: "PackedDataset") -> "list[FeatureSpace]":
    """The named feature networks on the model's device; the matcher is the one of the suite retrieval, trained on first use."""
    from gan_t2i.evaluation.features import open_space
    from gan_t2i.evaluation.retrieval import prepare_judge

    def matcher() -> "Matcher":
        return prepare_judge(dataset, pipeline.encoder, pipeline.device).matcher

    return [open_space(name, pipeline.device, matcher) for name in names]
