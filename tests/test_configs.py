"""Every shipped config is valid, says what it is, and builds; the one for a GPU takes a step."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image

from gan_t2i.core.config import read_yaml, with_overrides
from gan_t2i.core.runtime import peak_memory_gib
from gan_t2i.registry import build
from gan_t2i.training.config import TrainConfig
from gan_t2i.training.session import prepare

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
TINY = {"name": "tiny", "params": {"width": 32, "layers": 1, "heads": 2, "max_tokens": 16}}


def test_configs_are_found() -> None:
    assert {path.stem for path in CONFIGS} >= {"quickstart", "shapes32", "shapes64", "emoji64", "base64", "base256", "base512"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_says_how_to_run_it_and_builds(path: Path) -> None:
    header = path.read_text(encoding="utf-8").split("\n\n")[0]
    assert header.startswith(f"# gan-t2i train --config configs/{path.name}")
    for word in ("Hardware:", "Time:", "Expect:"):
        assert word in header
    config = TrainConfig.parse(read_yaml(path))
    interface = {"resolution": config.resolution, "text_width": 384, "max_tokens": 64}
    with torch.device("meta"):
        for kind, spec in (("generator", config.generator), ("discriminator", config.discriminator)):
            assert build(kind, spec.name, spec.params, **interface).resolution == config.resolution


FOLDER = Path(__file__).parents[1] / "configs" / "ablations"
ABLATIONS = sorted(path.relative_to(FOLDER) for path in FOLDER.rglob("*.yaml"))
AROUND = [path for path in ABLATIONS if path.parent.name == "around" and path.stem not in ("recipe", "together")]
EMOJI64 = TrainConfig.parse(read_yaml(FOLDER.parent / "emoji64.yaml"))


@pytest.mark.parametrize("path", ABLATIONS, ids=str)
def test_an_ablation_is_a_row_of_the_table(path: Path) -> None:
    assert (FOLDER / path).read_text(encoding="utf-8").startswith(f"# gan-t2i train --config configs/ablations/{path}\n")
    kimg = {"around": 48, "real": EMOJI64.kimg}.get(path.parent.name, 80)
    assert TrainConfig.parse(read_yaml(FOLDER / path)).kimg == kimg  # all of a table alike
    assert f"[{path.stem}](configs/ablations/{path})" in (FOLDER.parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", AROUND, ids=str)
def test_a_row_around_the_recipe_changes_one_thing(path: Path) -> None:
    recipe, row = (TrainConfig.parse(read_yaml(FOLDER / name)).model_dump() for name in ("around/recipe.yaml", path))
    changed = {section for section in recipe if recipe[section] != row[section]}
    assert len(changed) == 1 or changed == {"generator", "discriminator"}


@pytest.mark.parametrize("path", [path for path in ABLATIONS if path.parent.name == "real"], ids=str)
def test_a_row_of_real_pictures_is_emoji64_with_another_network(path: Path) -> None:
    recipe, row = (config.model_dump() for config in (EMOJI64, TrainConfig.parse(read_yaml(FOLDER / path))))
    assert len([section for section in recipe if recipe[section] != row[section]]) == 1


def test_the_row_together_changes_what_three_rows_change() -> None:
    names = ("recipe", "together", "batch8", "hinge", "g_orthogonal")
    recipe, together, *alone = (TrainConfig.parse(read_yaml(FOLDER / "around" / f"{name}.yaml")).model_dump() for name in names)
    changes = [{section: row[section] for section in row if row[section] != recipe[section]} for row in alone]
    assert together == recipe | changes[0] | changes[1] | changes[2]


def base256(folder: Path, *changes: str) -> TrainConfig:
    """The shipped config on three plain pictures below `folder`, with a text encoder that needs no download."""
    for name in ("red", "green", "blue"):
        Image.new("RGB", (256, 256), name).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"all {name}\n", encoding="utf-8")
    values = read_yaml(next(path for path in CONFIGS if path.stem == "base256"))
    return TrainConfig.parse(with_overrides(values, [f"data.source={folder}", *changes]) | {"text_encoder": TINY})


def test_base256_takes_a_step(tmp_path: Path) -> None:
    session = prepare(base256(tmp_path, "batch=2", "penalty.fraction=0.5", "optimizer.warmup_kimg=0"))
    before = [parameter.clone() for parameter in session.networks.G.parameters()]
    metrics = session.run_step(0)
    assert all(value.isfinite() for value in metrics.values())
    assert "Loss/r1_penalty" in metrics
    assert all(not torch.equal(old, new) for old, new in zip(before, session.networks.G.parameters(), strict=True))


def peak_of_a_step(config: TrainConfig) -> float:
    """GiB that this process has held at most, after a step with penalties."""
    metrics = prepare(config).run_step(0)
    assert "Loss/r1_penalty" in metrics
    assert all(value.isfinite() for value in metrics.values())
    return peak_memory_gib(torch.device("cpu"))


@pytest.mark.slow
def test_base256_takes_a_step_of_its_own_batch_within_24_gib(tmp_path: Path) -> None:
    """On a CPU, in 4 parts of 16 pictures, checkpointed; a process of its own, whose peak is not pytest's."""
    config = base256(tmp_path, "accumulation=4", "checkpointing=true")
    assert config.batch == 64
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        peak = pool.submit(peak_of_a_step, config).result()
    print(f"{peak:.1f} GiB at the peak")
    assert 1 < peak < 24
