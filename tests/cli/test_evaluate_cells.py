"""``gan-t2i evaluate cells``: figures on the screen, and figures and a sheet in the run's folder."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gan_t2i.cli.main import command
from gan_t2i.evaluation import retrieval
from gan_t2i.evaluation.matcher import MatcherConfig
from gan_t2i.runs import RunFolder


def test_a_run(trained: RunFolder, cell_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(Path(shutil.copytree(trained.path, tmp_path / "runs" / trained.path.name)))
    monkeypatch.setattr(retrieval, "MatcherConfig", lambda: MatcherConfig(channels=8, max_kimg=1))
    options = ["--data", str(cell_pictures), "--features", "random", "--limit", "3", "--seeds", "2"]
    result = CliRunner().invoke(command, ["evaluate", "cells", str(run.path), *options])
    assert result.exit_code == 0, result.output
    header, *lines = result.stdout.splitlines()
    assert header.split() == ["features", "hash", "kind", "figure", "generated", "+-", "real", "chance", "n"]
    assert [line.split()[2:4] for line in lines] == [
        ["cell", "r1"],
        ["cell", "style"],
        ["thing", "r1"],
        ["thing", "style"],
        ["thing", "caption_r1"],
        ["train", "diversity"],
    ]
    name = "cells-000000040-featuresrandom-limit3-seeds2"
    [file] = (run.path / "evaluation").glob(f"{name}-data*.json")
    values = json.loads(file.read_text())
    assert (values["nimg"], values["suite"], values["notes"]) == (40, "cells", [])
    with Image.open(file.with_suffix(".png")) as sheet:
        assert sheet.width > 2 * 3 * 96
    events = EventAccumulator(str(run.path)).Reload()
    for figure in values["figures"]:
        tag = f"Metrics/cells/{figure['network']}/{figure['kind']}_{figure['name']}-data{values['data_fingerprint'][:8]}"
        [event] = events.Scalars(tag)
        assert (event.step, event.value) == (40, pytest.approx(figure["generated"], rel=1e-4))


def test_a_run_of_other_data_is_refused(trained: RunFolder) -> None:
    for arguments, code, said in [
        ([], 1, "evaluate cells needs pictures with the columns style, thing and heldout"),
        (["--features", "vgg"], 2, "--features vgg is not a network"),
        (["--seeds", "1"], 2, "1 is not in the range x>=2"),
    ]:
        result = CliRunner().invoke(command, ["evaluate", "cells", str(trained.path), *arguments])
        assert result.exit_code == code, result.output
        assert said in result.stderr
    assert not (trained.path / "evaluation").exists()
