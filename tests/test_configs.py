"""Every recipe is valid, says what it is, and builds; the one for a GPU takes a step. Every row of a study can be run."""

import argparse
import multiprocessing
import re
import shlex
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image

from gan_t2i.core.config import read_yaml, with_overrides
from gan_t2i.core.errors import UsageError
from gan_t2i.core.runtime import peak_memory_gib
from gan_t2i.training.config import TrainConfig
from gan_t2i.training.networks import check_networks
from gan_t2i.training.session import prepare

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
STUDIES = sorted((ROOT / "configs" / "studies").glob("*/README.md"))
TINY = {"name": "tiny", "params": {"width": 32, "layers": 1, "heads": 2, "max_tokens": 16}}


def test_configs_are_found() -> None:
    assert {path.stem for path in CONFIGS} >= {"quickstart", "shapes32", "shapes64", "emoji64", "base64", "base256", "base512"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_says_how_to_run_it_and_builds(path: Path) -> None:
    header = path.read_text(encoding="utf-8").split("\n\n")[0]
    assert re.match(rf"# gan-t2i train --preset {path.stem}( |$)", header, re.M)
    for word in ("Hardware:", "Time:", "Expect:"):
        assert word in header
    config = TrainConfig.parse(read_yaml(path))
    check_networks(config)


class Row(NamedTuple):
    """A row of a study's table: the line that it stands in, its name, and the options of `gan-t2i train`."""

    line: int
    name: str
    base: str
    change: str


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def rows(text: str) -> Iterator[Row]:
    """The rows of all tables with a column "change" that name options or the base. Anything else in that column raises ValueError.

    A line "Base: `OPTIONS`" is the base of the tables below it. Cells "gone: WHAT (COMMIT)" and "probe: WHAT" are not for today's config, and
    empty ones continue the row above.
    """
    base, column = None, None
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("Base:"):
            found = re.fullmatch(r"Base: `(--[^`]+)`", line)
            if not found:
                raise ValueError(f"line {number}: {line!r} is not of the form Base: `OPTIONS`")
            base = found[1]
        if not line.startswith("|"):
            column = None
        elif column is None:
            column = cells(line).index("change") if "change" in cells(line) else -1
        elif column >= 0 and not set(line) <= set("|- "):
            cell = cells(line)[column]
            options = re.fullmatch(r"`(--[^`]+)`", cell)
            if cell == "the base" or options:
                if base is None:
                    raise ValueError(f"line {number}: no base above it")
                yield Row(number, cells(line)[0], base, options[1] if options else "")
            elif cell and not re.fullmatch(r"gone: .+ \([0-9a-f]{7}\)|probe: .+", cell):
                raise ValueError(f"line {number}: {cell!r} is neither options, the base, gone nor a probe")


def parse(options: str) -> TrainConfig:
    """The config that `gan-t2i train OPTIONS` would train, of the options that a study may name."""
    parser = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config")
    source.add_argument("--preset")
    parser.add_argument("--set", action="append", default=[])
    for key in ("kimg", "init"):
        parser.add_argument(f"--{key}", dest="set", action="append", type=f"{key}={{}}".format)
    given, unknown = parser.parse_known_args(shlex.split(options))
    if unknown:
        raise ValueError(f"{options!r}: {unknown} are not options of a row")
    values = read_yaml(ROOT / (given.config or f"configs/{given.preset}.yaml"))
    return TrainConfig.parse(with_overrides(values, given.set))


def check(text: str) -> int:
    """Parse every row of a study's README; returns their number."""
    found = list(rows(text))
    for row in found:
        config, base = parse(f"{row.base} {row.change}"), parse(row.base)
        if row.change and config == base:
            raise ValueError(f"line {row.line}: {row.change} changes nothing")
    return len(found)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.parent.name)
def test_every_row_of_a_study_can_be_run(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert "**Answer.**" in text
    count = check(text)
    assert count >= 1 or "Base:" not in text
    base = path.parent / "base.yaml"
    assert not base.exists() or f"--config configs/studies/{path.parent.name}/base.yaml" in text


def test_the_studies_have_rows_and_stand_in_the_index() -> None:
    assert sum(len(list(rows(path.read_text(encoding="utf-8")))) for path in STUDIES) > 40
    index = (ROOT / "configs" / "studies" / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| \[(\w+)\]\(\1/README.md\)", index, re.M), "the index links the studies"
    assert set(re.findall(r"^\| \[(\w+)\]\(\1/README.md\)", index, re.M)) == {path.parent.name for path in STUDIES}


AROUND = list(rows((ROOT / "configs" / "studies" / "around_recipe" / "README.md").read_text(encoding="utf-8")))


def sections_changed(row: Row) -> dict[str, object]:
    config, base = parse(f"{row.base} {row.change}").model_dump(), parse(row.base).model_dump()
    return {section: config[section] for section in config if config[section] != base[section]}


@pytest.mark.parametrize("row", [row for row in AROUND if row.change and row.name != "together"], ids=lambda row: row.name)
def test_a_row_around_the_recipe_changes_one_thing(row: Row) -> None:
    assert len(sections_changed(row)) == 1 or {*sections_changed(row)} == {"generator", "discriminator"}


def test_the_row_together_changes_what_three_rows_change() -> None:
    changes = {row.name: sections_changed(row) for row in AROUND}
    assert changes["together"] == changes["batch8"] | changes["hinge"] | changes["g_orthogonal"]


TABLE = "Base: `--preset quickstart`\n\n| row | change |\n|---|---|\n| one | {} |\n"


@pytest.mark.parametrize("cell", ["the base", "", "`--set batch=8`", "`--set batch=8 --kimg 2`", "gone: x=1 (8034c6e)", "probe: more heads"])
def test_a_sound_row_passes(cell: str) -> None:
    assert check(TABLE.format(cell)) <= 1


@pytest.mark.parametrize(
    "cell",
    [
        "`--set bach=8`",  # an unknown key
        "`--set batch=eight`",  # a wrong value
        "`--set batch`",
        "`--set batch=16`",  # the default
        "`--sett batch=8`",
        "`--set discriminator.name=resnett`",
        "`--set loss.name=hinge`",
        "--set batch=8",  # no code span
        "`batch=8`",
        "gone: x=1",  # no commit
        "base",
    ],
)
def test_a_broken_row_is_found(cell: str) -> None:
    with pytest.raises((UsageError, ValueError, argparse.ArgumentError)):
        check(TABLE.format(cell))


def test_a_row_without_a_base_is_found() -> None:
    with pytest.raises(ValueError, match="no base"):
        check(TABLE.format("the base").partition("\n")[2])


def base(folder: Path, name: str, *changes: str) -> TrainConfig:
    """The shipped config of that name on three plain pictures below `folder`, with a text encoder that needs no download."""
    for colour in ("red", "green", "blue"):
        Image.new("RGB", (256, 256), colour).save(folder / f"{colour}.png")
        (folder / f"{colour}.txt").write_text(f"all {colour}\n", encoding="utf-8")
    values = read_yaml(next(path for path in CONFIGS if path.stem == name))
    return TrainConfig.parse(with_overrides(values, [f"data.source={folder}", *changes]) | {"text_encoder": TINY})


@pytest.mark.parametrize("name", ["base64", pytest.param("base256", marks=pytest.mark.slow)])
def test_a_base_recipe_takes_a_step(tmp_path: Path, name: str) -> None:
    session = prepare(base(tmp_path, name, "batch=2", "penalty.fraction=0.5", "optimizer.warmup_kimg=0"))
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
    config = base(tmp_path, "base256", "accumulation=4", "checkpointing=true")
    assert config.batch == 64
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        peak = pool.submit(peak_of_a_step, config).result()
    print(f"{peak:.1f} GiB at the peak")
    assert 1 < peak < 24
