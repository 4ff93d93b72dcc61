"""Turn a request, such as pictures and minutes, into a config for this machine."""

import json
import logging
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from gan_t2i.core.config import with_options, with_overrides
from gan_t2i.core.distributed import first_of_node_first, from_first, is_first
from gan_t2i.core.errors import UsageError
from gan_t2i.data.records import Record
from gan_t2i.doctor.dry_run import examples_of, pace_on
from gan_t2i.doctor.recommend import MINUTES, Length, Recommendation, inspect_and_recommend, recommend, with_length
from gan_t2i.training.config import TrainConfig
from gan_t2i.training.warm_start import settings_of

log = logging.getLogger(__name__)

PICTURES = 500
"""Largest number of pictures that are inspected: enough for sizes and faults, in seconds."""


@dataclass(frozen=True)
class Request:
    """A config to train with, or data that one is recommended for, with settings on top."""

    base: Mapping[str, Any] | None = None
    """Config values; None takes the recommended ones."""
    changes: tuple[str, ...] = ()
    """Settings on top, as ``a.b=c``."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Config values on top of those; a group is merged key by key."""
    minutes: float | None = None
    """Time that the run is to take, pretraining included; None leaves the length as it is, or takes `MINUTES` for a recommended config."""

    def __post_init__(self) -> None:
        if self.minutes is not None and "kimg" in self.apply({}):
            raise UsageError("minutes and kimg both set the length of the run: give one of them")

    @property
    def is_measured(self) -> bool:
        """True if measurements on this machine decide on the config."""
        return self.base is None or self.minutes is not None

    @property
    def device(self) -> str:
        """The config's device."""
        return str(self.apply(self.base or {}).get("device", "auto"))

    def apply(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return config values with the request's settings on top."""
        return with_options(with_overrides(values, self.changes), self.options)

    def to_json(self) -> dict[str, Any]:
        """Return the request as plain values."""
        return {**asdict(self), "changes": list(self.changes)}

    def command(self) -> str:
        """Return a request without a config as a command line."""
        settings = list(self.changes)
        for key, value in self.options.items():
            group = {f"{key}.{name}": each for name, each in value.items()} if isinstance(value, Mapping) else {key: value}
            group.pop("data.source", None)
            settings += [f"{name}={each if isinstance(each, str) else json.dumps(each)}" for name, each in group.items()]
        length = [] if "kimg" in self.apply({}) else ["--minutes", f"{self.minutes or MINUTES:g}"]
        data = ["--data", source] if (source := self.options.get("data", {}).get("source")) else []
        return shlex.join(["gan-t2i", "train", *data, *length, *(part for setting in settings for part in ("--set", setting))])


@dataclass(frozen=True)
class Plan:
    """The config for a request, and how it came about."""

    config: TrainConfig
    lines: tuple[str, ...] = ()
    """The choices with their reasons."""
    recommended: str | None = None
    """The recommended config as YAML, with its reasons."""


def make_plan(request: Request) -> Plan:
    """Return the config for a request: inspects the data where there is none, and measures a few steps to fill the minutes.

    Several processes do so together, and take the first one's result. Raises `UsageError` for what is wrong in the request, and `GanT2IError`
    for what is wrong with the data, or where the config does not fit into memory.
    """
    base, minutes = request.base, request.minutes
    lines: list[str] = []
    if base is None:
        given = request.apply({})
        _require_data(given)
        if not given.get("init"):
            return _recommended(request)
        base = settings_of(str(given["init"]))
        lines.append(f"config: that of {given['init']}")
        minutes = minutes or (None if "kimg" in given else MINUTES)
    config = TrainConfig.parse(request.apply(base))
    if minutes is None:
        return Plan(config, tuple(lines))
    with first_of_node_first():
        examples = examples_of(config)
    length = _measured_length(config, examples, minutes)
    config = TrainConfig.parse(request.apply(with_length(config.model_dump(mode="json"), length)))
    return Plan(config, (*lines, f"length: {config.kimg:g} kimg ({length.why})"))


def _require_data(values: Mapping[str, Any]) -> None:
    data = values.get("data", {})
    if not isinstance(data, dict):
        TrainConfig.parse(values)  # says what is wrong
    if "source" not in data:
        raise UsageError("nothing to train on: name pictures with --data FOLDER, a recipe with --preset NAME, or a config with --config FILE")


def _recommended(request: Request) -> Plan:
    values = request.apply({})
    data = values["data"]
    settings = {key: value for key, value in data.items() if key != "source"}
    with first_of_node_first():
        inspection, advice = inspect_and_recommend(str(data["source"]), settings, request.device, limit=PICTURES, progress=is_first())
    config = _config(request, advice)  # what is wrong with the settings is found before anything is measured
    if "kimg" in values:
        length = Length(config.kimg, "as given")
    else:
        length = _measured_length(config, inspection.examples, request.minutes or MINUTES)
    advice = recommend(advice.facts, advice.machine, length)
    config, reasons = _config(request, advice), advice.reasons
    strengths = {name: value for name, value in config.augment.model_dump().items() if value}
    lines: tuple[str, ...] = (
        f"recipe: {advice.recipe.name} ({advice.why})",
        f"resolution: {config.resolution} px ({'as given' if 'resolution' in values else reasons['resolution']})",
        f"length: {config.kimg:g} kimg ({length.why})",
        f"text encoder: {config.text_encoder.name} ({reasons['text_encoder']})"
        if "text_encoder" in reasons
        else f"augmentation: {', '.join(f'{name} {value:g}' for name, value in strengths.items()) or 'none'} ({reasons['augment']})",
    )
    if min(advice.facts.captions, advice.facts.pictures) < 2 and "terms" in reasons:
        lines += (f"terms: {reasons['terms']}",)
    return Plan(config, lines, f"# {request.command()}\n{advice.to_yaml()}")


def _config(request: Request, advice: Recommendation) -> TrainConfig:
    return TrainConfig.parse(from_first(request.apply(advice.values)))


def _measured_length(config: TrainConfig, examples: list[Record], minutes: float) -> Length:
    log.info("measuring a few training steps on this machine")
    pace = pace_on(config, examples)
    return from_first(Length.fitting(minutes, pace.rate, sum(pace.pretraining.values())))
