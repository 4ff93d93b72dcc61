"""Every shipped config is valid, says what it is, and builds; the one for a GPU takes a step."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from gan_t2i.config import read_yaml, with_overrides
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


ABLATIONS = sorted((Path(__file__).parents[1] / "configs" / "ablations").glob("*.yaml"))


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda path: path.stem)
def test_an_ablation_is_a_row_of_the_table(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith(f"# gan-t2i train --config configs/ablations/{path.name}\n")
    config = TrainConfig.parse(read_yaml(path))
    assert config.kimg == 80  # all alike
    assert f"[{path.stem}](configs/ablations/{path.name})" in (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_base256_takes_a_step(tmp_path: Path) -> None:
    for name in ("red", "green", "blue"):
        Image.new("RGB", (256, 256), name).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"all {name}\n", encoding="utf-8")
    values = read_yaml(next(path for path in CONFIGS if path.stem == "base256"))
    small = [f"data.source={tmp_path}", "batch=2", "penalty.fraction=0.5", "optimizer.warmup_kimg=0"]
    values = with_overrides(values, small) | {"text_encoder": TINY}
    session = prepare(TrainConfig.parse(values), lambda message: None)
    before = [parameter.clone() for parameter in session.networks.G.parameters()]
    metrics = session.run_step(0)
    assert all(value.isfinite() for value in metrics.values())
    assert "Loss/r1_penalty" in metrics
    assert all(not torch.equal(old, new) for old, new in zip(before, session.networks.G.parameters(), strict=True))
