import pytest

from gan_t2i.core.errors import UsageError
from gan_t2i.runs import DEFAULT_MODEL, RunFolder, list_runs, new_run, pretrained_model, resolve_snapshot, run_of


def add_snapshot(run, nimg):
    path = run.snapshot(nimg)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")
    return path


def refusal(*args):
    with pytest.raises(UsageError) as error:
        resolve_snapshot(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_runs_are_numbered_on_past_gaps(tmp_path):
    outdir = tmp_path / "deep" / "runs"
    assert list_runs(outdir) == []
    assert new_run(outdir, "My Icons!").path == outdir / "00000-my-icons"
    (outdir / "00011-old").mkdir()
    assert new_run(outdir, "").path == outdir / "00012-untitled"


def test_only_numbered_folders_are_runs(tmp_path):
    for name in ("00002-b", "00001-c", "notes", "1-x", "000003-long"):
        (tmp_path / name).mkdir()
    (tmp_path / "00009-file").write_text("")
    assert [run.path.name for run in list_runs(tmp_path)] == ["00001-c", "00002-b"]


def test_a_run_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(UsageError, match=r"cannot make run folder .*00000-x: Not a directory"):
        new_run(tmp_path / "runs", "x")


def test_snapshots_are_listed_oldest_first_without_half_written_ones(tmp_path):
    run = new_run(tmp_path, "x")
    assert run.snapshots() == []
    paths = [add_snapshot(run, nimg) for nimg in (9_000, 16_000, 123_456_789)]
    (run.path / "snapshots" / ".snapshot-000020000.safetensors.abc.tmp").write_bytes(b"")
    assert run.snapshots() == paths


def test_files_of_a_run(tmp_path):
    run = RunFolder(tmp_path)
    assert run.config == tmp_path / "config.yaml"
    assert run.stats == tmp_path / "stats.jsonl"
    assert run.state == tmp_path / "state.safetensors"
    assert run.grid(1500) == tmp_path / "grids" / "grid-000001500.png"
    assert run.snapshot(1500) == tmp_path / "snapshots" / "snapshot-000001500.safetensors"


def test_latest_is_the_newest_snapshot_of_the_newest_run_that_has_one(tmp_path):
    first, second, _ = (new_run(tmp_path, name) for name in ("zebra", "apple", "empty"))
    add_snapshot(first, 99_000)
    add_snapshot(second, 2_000)
    newest = add_snapshot(second, 10_000)
    assert resolve_snapshot("latest", tmp_path) == newest
    assert resolve_snapshot(str(first.path)) == first.snapshot(99_000)
    assert resolve_snapshot(str(second.snapshot(2_000))) == second.snapshot(2_000)


def test_without_a_run_the_pretrained_model_stands_in(tmp_path):
    run = new_run(tmp_path, "empty")
    assert resolve_snapshot("auto", tmp_path) == resolve_snapshot("pretrained", tmp_path) == pretrained_model(DEFAULT_MODEL)
    snapshot = add_snapshot(run, 1000)
    assert resolve_snapshot("auto", tmp_path) == snapshot
    assert resolve_snapshot("pretrained", tmp_path) == pretrained_model(DEFAULT_MODEL)
    assert resolve_snapshot("pretrained:shapes64", tmp_path) == pretrained_model("shapes64")


def test_an_unresolvable_name_is_refused_in_one_sentence(tmp_path):
    run = new_run(tmp_path, "x")
    assert refusal(str(run.path)) == f"{run.path} is no run folder: it has no snapshots and no config.yaml"
    run.config.touch()
    assert refusal("latest", tmp_path).startswith(f"there is no run with a snapshot in {tmp_path}/: train one first")
    assert refusal(str(run.path)).startswith(f"run {run.path} has no snapshot yet")
    assert refusal(str(tmp_path / "nothing")).startswith(f"no such run or snapshot: {tmp_path / 'nothing'}")
    assert refusal("").startswith("no such run or snapshot: ''; name a run folder")


def test_one_process_trains_in_a_run(tmp_path):
    folder = new_run(tmp_path, "one")
    with folder.lock(), pytest.raises(UsageError, match=r"another process is training in .*00000-one"), RunFolder(folder.path).lock():
        pass
    with folder.lock():  # free again
        pass


def test_the_run_of_a_snapshot(tmp_path):
    folder = new_run(tmp_path, "one")
    assert run_of(folder.snapshot(16)) is None  # a folder without a config is not a run
    folder.config.write_text("seed: 0\n")
    assert run_of(folder.snapshot(16)) == folder
    assert run_of(folder.path / "elsewhere" / "snapshot.safetensors") is None
