"""The recommended config: rules, reasons, and that training takes it."""

import copy
from dataclasses import replace

import pytest
import yaml

from gan_t2i.core import recipes
from gan_t2i.core.config import read_yaml
from gan_t2i.doctor.recommend import FEW_ON_CPU, ON_CPU, ON_GPU, Facts, Length, Machine, Recipe, recommend
from gan_t2i.training.config import TrainConfig
from gan_t2i.training.networks import check_networks

CPU = Machine("cpu", 16, has_encoder=True, has_features=True)
GPU = Machine("cuda", 24, has_encoder=True, has_features=True)
FACTS = Facts(
    data={"source": "pictures"},
    pictures=5000,
    captions=4000,
    smallest_side=100,
    has_split=False,
    direction_share=0,
    colour_share=0,
    p95_tokens=20,
)


@pytest.mark.parametrize("recipe", [*ON_CPU, *FEW_ON_CPU, *ON_GPU], ids=lambda recipe: recipe.name)
def test_what_is_recommended_is_the_shipped_recipe_but_for_what_the_rules_adapt(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = TrainConfig.parse(read_yaml(recipes.find(recipe.name)))
    monkeypatch.setattr("gan_t2i.doctor.recommend.choose_recipe", lambda *arguments: (recipe, ""))
    facts = replace(FACTS, packed_at=shipped.resolution)
    ours = recommend(facts, replace(GPU, memory_gib=10**6), Length(shipped.kimg, "")).config()
    adapted = {"data", "ema", "report", "penalty", "augment", "accumulation"}
    assert {name for name in TrainConfig.model_fields if getattr(ours, name) != getattr(shipped, name)} <= adapted
    assert ours.penalty == shipped.penalty or shipped.resolution > 64


def test_few_pictures_get_what_emoji64_has_in_a_run_of_its_length() -> None:
    shipped = TrainConfig.parse(read_yaml(recipes.find("emoji64")))
    found = recommend(FACTS, CPU, Length(shipped.kimg, ""))
    ours = found.config()
    assert found.recipe is FEW_ON_CPU[0]
    assert ours.kimg == shipped.kimg
    for name in ("generator", "discriminator", "loss", "terms", "penalty", "optimizer", "augment", "batch"):
        assert getattr(ours, name) == getattr(shipped, name), name
    assert (ours.autoencoder.name, ours.augment.brightness) == ("conv", 0)


@pytest.mark.parametrize(
    ("changes", "machine"),
    [
        ({"pictures": 10_000, "captions": 9000}, "cpu"),
        ({"pictures": 79, "captions": 79}, "cpu"),
        ({"captions": 1}, "cpu"),
        ({"captions": 600}, "cpu"),
        ({"smallest_side": 40}, "cpu"),
        ({}, "cuda"),
    ],
)
def test_latents_are_recommended_only_where_they_were_tried(changes: dict, machine: str) -> None:
    found = recommend(replace(FACTS, **changes), replace(CPU, kind=machine))
    assert found.config().autoencoder.name == "pixels"


def test_seeds_differ_where_a_caption_has_several_pictures() -> None:
    found = recommend(replace(FACTS, captions=FACTS.pictures // 4), CPU)
    ours = found.config()
    assert (found.recipe, ours.terms["reconstruction"]["candidates"], ours.decoder.kimg) == (FEW_ON_CPU[0], 4, 0)
    assert "a caption has a few of them" in found.why
    assert "not tried where a caption has several" in found.reasons["decoder"]
    one = recommend(FACTS, CPU).config()
    assert one.terms["reconstruction"]["candidates"] == 1
    assert one.decoder.kimg > 0


@pytest.mark.parametrize("machine", [CPU, GPU, replace(CPU, has_encoder=False)])
@pytest.mark.parametrize(
    "facts",
    [
        FACTS,
        replace(FACTS, pictures=1, captions=1, smallest_side=9),
        replace(FACTS, pictures=10**6, captions=10**6, smallest_side=3000, p95_tokens=90),
    ],
    ids=["usual", "least", "most"],
)
def test_training_takes_what_is_recommended_and_every_key_has_a_reason(facts: Facts, machine: Machine) -> None:
    found = recommend(facts, machine)
    text = found.to_yaml()
    assert yaml.safe_load(text) == found.values
    config = TrainConfig.parse(yaml.safe_load(text))
    check_networks(config)
    assert config.data.source == "pictures"
    assert max(map(len, text.splitlines())) < 144
    assert found.values.keys() - found.reasons.keys() <= {"generator", "discriminator"}


@pytest.mark.parametrize(
    ("side", "machine", "resolution", "recipe"),
    [
        (9, CPU, 16, "emoji64_resnet"),
        (32, CPU, 32, "emoji64_resnet"),
        (63, CPU, 32, "emoji64_resnet"),
        (64, CPU, 64, "emoji64"),
        (127, CPU, 64, "emoji64"),
        (128, CPU, 128, "emoji128"),
        (900, CPU, 128, "emoji128"),
        (127, GPU, 64, "base64"),
        (128, GPU, 128, "base256"),
        (900, GPU, 256, "base256"),
        (900, replace(GPU, memory_gib=80), 512, "base512"),
    ],
)
def test_resolution_follows_the_smallest_side_and_the_machine(side: int, machine: Machine, resolution: int, recipe: str) -> None:
    found = recommend(replace(FACTS, smallest_side=side), machine)
    assert (found.config().resolution, found.recipe.name) == (resolution, recipe)


@pytest.mark.parametrize(("side", "gamma"), [(16, 1), (64, 1), (128, 4), (256, 16)])
def test_penalties_grow_with_the_pixels_above_what_was_tried(side: int, gamma: float) -> None:
    found = recommend(replace(FACTS, smallest_side=side), GPU)
    assert (found.config().penalty.r1_gamma, found.config().penalty.r2_gamma) == (gamma, gamma)
    assert ("was measured at 64 px" in found.to_yaml()) == (side > 64)


def test_packed_data_keep_their_resolution_and_their_split() -> None:
    config = recommend(replace(FACTS, packed_at=128), CPU).config()
    assert config.resolution == 128
    assert config.data.model_fields_set == {"source"}


@pytest.mark.parametrize(("captions", "fraction"), [(100, 0.1), (1000, 0.064), (10_000, 0.02), (100_000, 0.005)])
def test_enough_captions_are_held_out(captions: int, fraction: float) -> None:
    assert recommend(replace(FACTS, captions=captions), CPU).config().data.holdout_fraction == fraction


def test_a_split_of_the_data_stays() -> None:
    assert "holdout_fraction" not in recommend(replace(FACTS, has_split=True), CPU).values["data"]


def test_few_pictures_are_augmented_but_for_what_captions_speak_of() -> None:
    def augment(**changes: float) -> dict[str, float]:
        return dict(recommend(replace(FACTS, **changes), CPU).values["augment"])  # type: ignore[arg-type]

    shared = {"captions": 500}  # which the recipe in pixels is for
    assert augment(**shared) == {"translation": 0.125, "brightness": 0.2, "saturation": 0.3}
    assert augment(**shared, direction_share=0.2) == {"brightness": 0.2, "saturation": 0.3}
    assert augment(**shared, colour_share=0.2) == {"translation": 0.125}
    assert augment(**shared, direction_share=0.2, colour_share=0.2) == {}
    assert augment(pictures=30_000) == {}
    assert augment(colour_share=0.2) == {"translation": 0.125, "cutout": 0.3}  # latents have no colours
    assert augment(direction_share=0.2) == {"cutout": 0.3}


def test_the_measured_rate_sets_the_duration_and_what_hangs_on_it() -> None:
    found = recommend(FACTS, CPU, Length.fitting(60, 10.0))
    config = found.config()
    assert config.kimg == 36  # less the time for records
    assert config.ema.half_life_kimg == 0.7
    assert config.report.grid_kimg == 3.6
    assert "about an hour at 10 img/s, measured here" in found.to_yaml()
    assert found.values.keys() == recommend(FACTS, CPU).values.keys()


def test_durations_follow_the_length_and_pretraining_does_not() -> None:
    config = recommend(FACTS, CPU, Length(100, "")).config()  # half of the recipe's
    assert (config.optimizer.cooldown_kimg, config.terms["reconstruction"]["kimg"], config.autoencoder.params["kimg"]) == (40, 150, 40)
    assert (config.optimizer.warmup_kimg, config.report.grid_kimg, config.report.stats_kimg) == (1, 10, 1)
    short = recommend(FACTS, CPU, Length(2.0, "", pretraining=0.1)).config()
    assert (short.optimizer.cooldown_kimg, short.terms["reconstruction"]["kimg"], short.autoencoder.params["kimg"]) == (0.8, 3, 4)
    assert (short.optimizer.warmup_kimg, short.ema.half_life_kimg, short.report.stats_kimg) == (0.4, 0.5, 0.1)


def test_without_pretrained_features_the_decoder_learns_without_them() -> None:
    assert recommend(FACTS, CPU).config().decoder.perceptual > 0
    found = recommend(FACTS, replace(CPU, has_features=False))
    assert (found.config().decoder.perceptual, found.config().decoder.kimg) == (0, FEW_ON_CPU[0].values["decoder"]["kimg"])
    assert 'pip install "gan-t2i[features]"' in found.reasons["decoder"]


def test_the_recipe_in_memory_stays_as_it_is() -> None:
    before = copy.deepcopy(FEW_ON_CPU[0].values)
    recommend(replace(FACTS, captions=1), CPU, Length(1.0, "", pretraining=0.1))
    recommend(FACTS, CPU, Length(1.0, "", pretraining=0.1))
    assert before == FEW_ON_CPU[0].values


@pytest.mark.parametrize(
    ("minutes", "pretraining", "kimg", "share", "why"),
    [
        (60, 0, 36, 1, "about an hour at 10 img/s, measured here"),
        (10, 0, 5.7, 1, "about 10 minutes at"),
        (2, 4, 0.3, 0.25, "about 1 minute at 10 img/s, measured here, besides 1 minute of other training, cut to half of the time"),
        (10, 4, 3.3, 1, "about 6 minutes at 10 img/s, measured here, besides 4 minutes of other training"),
        (10, 20, 2.7, 0.25, "about 5 minutes at 10 img/s, measured here, besides 5 minutes of other training, cut to half of the time"),
        (1e-6, 0, 3e-7, 1, "about 1e-06 minutes"),
    ],
)
def test_the_minutes_are_filled_with_pretraining_training_and_records(
    minutes: float, pretraining: float, kimg: float, share: float, why: str
) -> None:
    length = Length.fitting(minutes, 10, pretraining)
    assert (length.kimg, length.pretraining) == (pytest.approx(kimg), share)
    assert length.why.startswith(why)


def test_every_length_makes_a_valid_config() -> None:
    for kimg in (1e-6, 0.001, 0.5, 3.0, 12345.0):
        assert recommend(FACTS, CPU, Length(kimg, "")).config().kimg == kimg


def test_a_batch_that_does_not_fit_is_worked_off_in_parts() -> None:
    facts = replace(FACTS, smallest_side=256)
    assert recommend(facts, replace(GPU, memory_gib=80)).config().accumulation == 1
    assert recommend(facts, GPU).config().accumulation == 2
    assert recommend(facts, replace(GPU, memory_gib=0.1)).config().accumulation == 64


def test_the_encoder_is_one_that_is_here_and_takes_the_captions() -> None:
    assert "text_encoder" not in recommend(FACTS, CPU).values
    assert recommend(FACTS, replace(CPU, has_encoder=False)).config().text_encoder.name == "tiny"
    assert recommend(replace(FACTS, p95_tokens=70), CPU).config().text_encoder.params["max_tokens"] == 80
    for facts, why in (
        (replace(FACTS, captions=1), "all pictures have the same"),
        (replace(FACTS, pictures=1, captions=5), "a single pair cannot"),
    ):
        found = recommend(facts, CPU)
        assert found.config().terms["mismatch"]["weight"] == 0
        assert why in found.reasons["terms"]
