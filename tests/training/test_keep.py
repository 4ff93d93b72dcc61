"""How many snapshots stay."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from gan_t2i.core.errors import UsageError
from gan_t2i.runs import RunFolder
from gan_t2i.training import loop

Start = Callable[..., tuple[RunFolder, int | None]]
REPORT = {"stats_kimg": 0.004, "grid_kimg": 1, "snapshot_kimg": 0.004, "grid_prompts": 1, "grid_seeds": 1}


def run_with(path: Path, gaps: dict[int, float | None]) -> RunFolder:
    """A folder with a snapshot for each nimg, and a record of those that have a gap."""
    folder = RunFolder(path)
    folder.snapshot(0).parent.mkdir(parents=True)
    for nimg in gaps:
        folder.snapshot(nimg).touch()
    lines = [json.dumps({"nimg": nimg, "gap": gap}) for nimg, gap in gaps.items() if gap is not None]
    folder.stats.write_text("\n".join([*lines, '{"nimg": 99, "ga']), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("gaps", "keep", "left"),
    [
        ({4: 1, 8: 5, 12: 2, 16: 3}, 2, [8, 16]),
        ({4: 1, 8: 5, 12: 2, 16: 3}, 3, [8, 12, 16]),
        ({4: 1, 8: 2, 12: 3, 16: 4}, 2, [12, 16]),
        ({4: 5, 8: 5, 12: 2, 16: 3}, 2, [8, 16]),
        ({4: -1, 8: -5, 12: -2}, 2, [4, 12]),
        ({4: None, 8: None, 12: None}, 2, [8, 12]),
        ({4: None, 8: 1, 12: None, 16: None}, 2, [8, 16]),
        ({4: 1, 8: 2}, 3, [4, 8]),
        ({4: 3, 8: 2, 12: 1, 16: 9, 20: 0}, 2, [4, 12, 16, 20]),
    ],
    ids=["an old best", "three", "the newest is best", "a tie", "below zero", "no metric", "a metric now and then", "few", "later ones"],
)
def test_the_best_and_the_newest_stay(tmp_path: Path, gaps: dict[int, float | None], keep: int, left: list[int]) -> None:
    folder = run_with(tmp_path / "run", gaps)
    folder.thin_out(keep, "gap", 12 if 20 in gaps else max(gaps))
    assert folder.snapshots() == [folder.snapshot(nimg) for nimg in left]


def test_a_run_keeps_its_best_through_a_stop(start: Start, signal_after: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    gaps = iter([1.0, 2.0, 9.0, 3.0, 4.0, 5.0, 1.0, 1.0, 1.0, 1.0])  # at 4, 8, 12, ...
    monkeypatch.setattr(loop, "match_gap", lambda *arguments: next(gaps))
    report = {**REPORT, "keep": 3}
    signal_after(16)
    folder, stopped_by = start(report=report)
    assert stopped_by == signal.SIGTERM
    assert folder.snapshots() == [folder.snapshot(nimg) for nimg in (12, 16, 20)]
    assert start(report=report) == (folder, None)
    assert folder.snapshots() == [folder.snapshot(nimg) for nimg in (12, 36, 40)]


def test_all_stay_unless_told(start: Start) -> None:
    assert len(start(report=REPORT)[0].snapshots()) == 10


def test_one_is_too_few(start: Start) -> None:
    with pytest.raises(UsageError, match=r"report\.keep = 1"):
        start(report={**REPORT, "keep": 1})
