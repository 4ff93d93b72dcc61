"""Training on streamed tars: batches are a function of (seed, nimg), bad pictures are replaced, and memory stays small."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image
from processes import together
from test_many_processes import arrays_of, smooth_networks

import gan_t2i.training.session as session_module
from gan_t2i.cli.main import command
from gan_t2i.core.distributed import own_rows
from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.data.batches.sampler import Batch
from gan_t2i.data.batches.stream import StreamedDataset, StreamSampler, open_stream
from gan_t2i.data.packing import PackedDataset, pack
from gan_t2i.data.readers import tars
from gan_t2i.data.settings import DataSettings
from gan_t2i.runs import RunFolder
from gan_t2i.training.config import TrainConfig
from gan_t2i.training.session import Session, prepare

SETTINGS = DataSettings(holdout_fraction=0.2)
BUFFER = 16
COUNTS = (14, 0, 9, 20, 3)  # samples of each tar: windows begin and end within some
Start = Callable[..., tuple[RunFolder, int | None]]


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def png(number: int) -> bytes:
    """Return a picture whose colour encodes its number."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (number * 5, 255 - number * 5, number % 2 * 255)).save(buffer, "PNG")
    return buffer.getvalue()


def write_tars(folder: Path, bad: tuple[int, ...] = ()) -> Path:
    """Write tars of numbered pictures with two captions each; the pictures `bad` are truncated."""
    folder.mkdir()
    number = 0
    for shard, count in enumerate(COUNTS):
        with tarfile.open(folder / f"{shard:04}.tar", "w") as archive:
            for _ in range(count):
                content = png(number)
                add(archive, f"{number:03}.png", content[: len(content) // 2] if number in bad else content)
                add(archive, f"{number:03}.txt", f"number {number}\nthe picture {number}\n".encode())
                number += 1
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tars(tmp_path_factory.mktemp("streamed") / "tars")


@pytest.fixture(scope="module")
def packed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    return pack(source, tmp_path_factory.mktemp("packed") / "pack", 16, SETTINGS, progress=False)


@pytest.fixture
def stream(source: Path) -> StreamedDataset:
    return open_stream(source, 16, SETTINGS, progress=False)


def numbers(batch: Batch) -> list[int]:
    """Return the numbers of a batch's pictures; fails where one has another's caption."""
    shown = [int(picture[0, 0, 0]) // 5 for picture in batch.images]
    assert batch.texts is not None
    assert shown == [int(batch.texts[index].split()[-1]) for index in batch.captions.tolist()]
    return shown


def same(left: Batch, right: Batch) -> bool:
    pairs = zip(
        (left.images, left.captions, left.negatives, left.negative_mask),
        (right.images, right.captions, right.negatives, right.negative_mask),
        strict=True,
    )
    return left.texts == right.texts and all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_the_split_equals_that_of_a_pack(stream: StreamedDataset, packed: PackedDataset) -> None:
    trained = {packed.captions[packed.caption_ids[item][0]] for item in packed.train}
    records = stream.records(range(len(COUNTS)), 0, len(stream))
    assert {record.captions[0] for record in records} - trained == set()
    assert {f"number {record.captions[0].split()[-1]}" for record in records} == trained
    assert len(packed.heldout) == len(stream.sample.heldout) > 0
    trained_captions = {caption for record in records for caption in record.captions}
    held = {stream.sample.captions[index] for item in stream.sample.heldout for index in stream.sample.caption_ids[item]}
    assert trained_captions & held == set()
    report = stream.sample.report
    assert (report.pairs, report.heldout) == (sum(COUNTS), len(packed.heldout))


def test_each_pass_shows_every_training_picture_once_in_another_order(stream: StreamedDataset, packed: PackedDataset) -> None:
    sampler = StreamSampler(stream, 0, BUFFER)
    passes = [numbers(sampler.batch(epoch * len(stream), len(stream))) for epoch in range(3)]
    assert sorted(passes[0]) == packed.train.tolist()
    assert [sorted(shown) == sorted(passes[0]) for shown in passes] == [True] * 3
    assert passes[0] != passes[1] != passes[2]
    assert numbers(StreamSampler(stream, 1, BUFFER).batch(0, len(stream))) != passes[0]
    pictures = dict(zip(passes[0], sampler.batch(0, len(stream)).images, strict=True))
    assert all(torch.equal(pictures[number], packed.gather([number])[0]) for number in passes[0])


def test_a_batch_depends_on_seed_and_nimg_alone(stream: StreamedDataset) -> None:
    unbroken = StreamSampler(stream, 0, BUFFER)
    batches = [unbroken.batch(nimg, 6) for nimg in range(0, 180, 6)]  # several passes, none of whole batches
    for number in (29, 3, 17, 4):
        assert same(StreamSampler(stream, 0, BUFFER).batch(6 * number, 6), batches[number])
        assert same(unbroken.batch(6 * number, 6), batches[number])


def test_memory_stays_small_however_long_it_runs(stream: StreamedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = StreamSampler(stream, 0, BUFFER)
    for nimg in range(0, 300, 4):
        batch = sampler.batch(nimg, 4)
        assert len(batch.texts) <= 8
        assert len(sampler._ahead) == 4
        assert sampler.window.cache_info().currsize <= 2
        assert len(sampler.window(0, 0)) == BUFFER
        assert stream._shard.cache_info().currsize <= 1
    # and nothing is packed of the training pictures but the sample
    monkeypatch.setattr("gan_t2i.data.batches.stream.SAMPLE", 5)
    small = open_stream(stream._source.tree.local("0000.tar").parent, 16, DataSettings(holdout_fraction=0.21), progress=False)
    assert (len(small.sample.train), len(small.sample.heldout) <= 5) == (4, True)  # one of each tar, and one tar is empty


def test_rows_of_a_batch_equal_those_of_the_whole(stream: StreamedDataset) -> None:
    whole = StreamSampler(stream, 0, BUFFER, 2).batch(24, 6)
    for rows in (slice(0, 3), slice(3, 6)):
        part = StreamSampler(stream, 0, BUFFER, 2).batch(24, 6, rows)
        assert torch.equal(part.images, whole.images[rows])
        assert part.texts == whole.texts
        assert torch.equal(part.captions, whole.captions)
        assert torch.equal(part.negatives, whole.negatives)
        assert torch.equal(part.negative_mask, whole.negative_mask)
    assert [whole.texts[index] for index in whole.negatives[1:, 0]] == [whole.texts[index] for index in whole.captions[:-1]]
    assert whole.negatives.shape == whole.negative_mask.shape == (6, 2)


def test_an_unreadable_picture_is_counted_and_replaced(tmp_path: Path, said: list[str]) -> None:
    bad = tuple(range(0, 46, 3))
    stream = open_stream(write_tars(tmp_path / "tars", bad), 16, SETTINGS, progress=False)
    said.clear()
    whole = StreamSampler(stream, 0, BUFFER)
    batches = {nimg: whole.batch(nimg, 8) for nimg in range(0, 96, 8)}
    warnings = said.copy()
    parts = [StreamSampler(stream, 0, BUFFER) for _ in range(2)]
    for nimg, batch in batches.items():
        assert not set(numbers(batch)) & set(bad)
        for rows, part in zip((slice(0, 4), slice(4, 8)), parts, strict=True):
            own = part.batch(nimg, 8, rows)
            assert torch.equal(own.images, batch.images[rows])
            assert torch.equal(own.negative_mask, batch.negative_mask)
            assert [own.texts[i] for i in own.captions[rows]] == [batch.texts[i] for i in batch.captions[rows]]
            assert [own.texts[i] for i in own.negatives[rows, 0]] == [batch.texts[i] for i in batch.negatives[rows, 0]]
        for row, caption in enumerate(batch.captions.tolist()):
            assert not batch.negative_mask[row, 0] or batch.negatives[row, 0] != caption
    assert whole.replaced == sum(part.replaced for part in parts) > 16
    assert len(warnings) == whole.replaced.bit_length()
    assert warnings[0].startswith("unusable pictures of the stream, replaced by others: 1, the last one 000")
    assert "the file is not one of: PNG" in warnings[0]


def test_a_window_of_bad_pictures_ends_the_run_with_a_sentence(tmp_path: Path) -> None:
    source = write_tars(tmp_path / "tars", tuple(range(1, 46)))
    stream = open_stream(source, 16, SETTINGS, progress=False)  # its sample has one picture
    sampler = StreamSampler(stream, 0, 4)
    with pytest.raises(GanT2IError, match="none of 4 consecutive pictures of the tars can be used"):
        sampler.batch(0, len(stream))
    with pytest.raises(GanT2IError, match=r"none of \d+ pictures of the tars can be used"):
        open_stream(write_tars(tmp_path / "worse", tuple(range(46))), 16, SETTINGS, progress=False)
    with pytest.raises(GanT2IError, match=r"0000.tar/001 .*: the image cannot be read"):
        open_stream(source, 16, DataSettings(on_bad="error"), progress=False)


def test_hostile_members_are_counted(tmp_path: Path) -> None:
    source = write_tars(tmp_path / "tars")
    with tarfile.open(source / "0001.tar", "a") as archive:
        add(archive, "../up.png", png(1))
        add(archive, "late.png", png(1))
        add(archive, "twice.png", png(1))
        add(archive, "twice.png", png(1))
        add(archive, "alone.txt", b"x")
        add(archive, "late.cls", b"0")
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    (source / "notes.md").touch()
    report = open_stream(source, 16, SETTINGS, progress=False).sample.report
    assert report.pairs == sum(COUNTS)
    assert report.notes == ["captions from the texts in the tars", "not used in the format tars: .cls 1 (late.cls), .md 1 (notes.md)"]
    assert report.bad == {
        "path outside the folder": 1,
        "link in the archive": 1,
        "duplicate key": 1,
        "caption without image": 1,
        "image without caption": 1,
    }
    assert len(report.first_bad) == 5


def test_a_changed_tar_is_noticed(tmp_path: Path) -> None:
    source = write_tars(tmp_path / "tars")
    stream = open_stream(source, 16, SETTINGS, progress=False)
    before = stream.sample.fingerprint
    with tarfile.open(source / "0003.tar", "w") as archive:
        add(archive, "1.png", png(1))
        add(archive, "1.txt", b"number 1")
    with pytest.raises(GanT2IError, match=r"0003.tar has changed since training began: it has 1 pictures, not 1\d"):
        StreamSampler(stream, 0, 100).batch(0, 4)
    assert open_stream(source, 16, SETTINGS, progress=False).sample.fingerprint != before


def test_tars_are_scanned_once(source: Path, stream: StreamedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tars, "_samples", lambda *arguments: pytest.fail("read"))
    again = open_stream(source, 16, SETTINGS)
    assert again.sample.fingerprint == stream.sample.fingerprint


def test_a_pattern_equals_its_folder(source: Path, stream: StreamedDataset) -> None:
    pattern = open_stream(f"{source}/{{0000..0004}}.tar", 16, SETTINGS, progress=False)
    assert pattern.sample.fingerprint == stream.sample.fingerprint
    assert same(StreamSampler(pattern, 0, BUFFER).batch(8, 8), StreamSampler(stream, 0, BUFFER).batch(8, 8))


def test_sides_by_name_and_captions_of_json(tmp_path: Path) -> None:
    for name, words in (("train-0", "apple pear"), ("train-1", "plum fig"), ("val-0", "nut kiwi")):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as archive:
            for word in words.split():
                add(archive, f"{word}.png", png(1))
                add(archive, f"{word}.json", f'{{"caption": "{word}", "key": "x"}}'.encode())
    stream = open_stream(tmp_path, 16, progress=False)
    assert sorted(record.captions[0] for record in stream.records(range(3), 0, 9)) == ["apple", "fig", "pear", "plum"]
    assert stream.sample.report.heldout == 2
    assert stream.sample.report.notes == ['captions from key "caption" of the .json in the tars']


def test_only_a_folder_of_tars_or_a_pattern_is_streamed(pictures: Path, small_config: Callable[..., Any], tmp_path: Path) -> None:
    for source in (pictures, "hf:owner/name"):
        with pytest.raises(UsageError, match=r"data.stream takes a folder of tars or a pattern .* is neither"):
            open_stream(source, 16)
    with pytest.raises(UsageError, match=r"terms.mismatch.negatives nearest needs the whole data set packed, and data.stream"):
        TrainConfig.parse(small_config(data={"stream": True}, terms={"mismatch": {"negatives": ["random", "nearest"]}}))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "1.txt", b"a caption without a picture")
    with pytest.raises(GanT2IError, match="no picture to train on in 1 tars"):
        open_stream(tmp_path, 16, progress=False)


def streamed(source: Path) -> dict[str, Any]:
    return {"data": {"source": str(source), "stream": True, "shuffle_buffer": BUFFER, "holdout_fraction": 0.2}}


class Killed(BaseException):
    """Ends a run at once, as SIGKILL does: the project does not catch it."""


@pytest.mark.parametrize("bad", [(), tuple(range(0, 46, 5))], ids=["good pictures", "bad pictures"])
def test_a_killed_run_ends_with_the_bits_of_an_unbroken_one(
    start: Start, monkeypatch: pytest.MonkeyPatch, assert_same_state: Callable[..., None], tmp_path: Path, bad: tuple[int, ...]
) -> None:
    report = {"stats_kimg": 1, "grid_kimg": 1, "snapshot_kimg": 0.016, "grid_prompts": 1, "grid_seeds": 1}
    changes = {**streamed(write_tars(tmp_path / "tars", bad)), "kimg": 0.048, "accumulation": 2, "report": report}
    unbroken, _ = start(outdir=tmp_path / "unbroken", **changes)
    run_step, moments = Session.run_step, [24, 40]

    def run_or_die(session: Session, nimg: int) -> dict[str, torch.Tensor]:
        if nimg in moments:
            moments.remove(nimg)
            raise Killed
        return run_step(session, nimg)

    monkeypatch.setattr(Session, "run_step", run_or_die)
    for _ in range(2):
        with pytest.raises(Killed):
            start(**changes)
    folder, _ = start(**changes)
    assert moments == []
    assert_same_state(folder, unbroken)
    if not bad:
        other, _ = start(outdir=tmp_path / "other", **changes, seed=1)
        with pytest.raises(AssertionError):
            assert_same_state(other, unbroken)


def test_other_tars_are_refused_on_resume(start: Start, signal_after: Callable[..., None], tmp_path: Path) -> None:
    changes = streamed(write_tars(tmp_path / "tars"))
    signal_after(16)
    start(**changes)
    (tmp_path / "tars" / "0003.tar").unlink()
    with pytest.raises(GanT2IError, match="data set"):
        start(**changes)


def take_steps(values: dict[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], int]:
    """Return weights before and after some steps, and the number of replaced pictures."""
    session_module.build_networks = smooth_networks
    session = prepare(TrainConfig.parse(values))
    before = arrays_of(session.networks)
    count = session.config.batch
    for nimg in range(0, 6 * count, count):
        session.run_step(nimg)
    assert len(session.sampler.batch(0, count, own_rows(count)).images) == len(range(count)[own_rows(count)])
    assert isinstance(session.sampler, StreamSampler)
    return before, arrays_of(session.networks), session.sampler.replaced


def test_two_processes_equal_one(small_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(session_module, "build_networks", session_module.build_networks)
    rates = {"warmup_kimg": 0, "g_lr": 2e-3, "d_lr": 2e-3}
    source = write_tars(tmp_path / "tars", tuple(range(0, 46, 4)))
    values = small_config(batch=8, precision="float32", device="cpu", optimizer=rates, **streamed(source))
    (_, first, replaced), (_, second, more) = together(take_steps, values)
    before, alone, all_replaced = take_steps({**values, "accumulation": 2})  # two processes of a part each are one of two parts
    assert (replaced > 0, more > 0, replaced + more) == (True, True, all_replaced)
    for name, start in before.items():
        assert np.array_equal(first[name], second[name]), name
        moved = np.abs(alone[name] - start).max()
        np.testing.assert_allclose(first[name], alone[name], rtol=0, atol=1e-3 * moved + 1e-7, err_msg=name)


def test_the_command(source: Path, small_config: Callable[..., Any], tmp_path: Path) -> None:
    """Train with grids, held-out pictures and a dry run; a command that needs a pack says so."""
    config, outdir = tmp_path / "small.yaml", tmp_path / "runs"
    config.write_text(yaml.safe_dump(small_config(data={"stream": True, "shuffle_buffer": 8, "holdout_fraction": 0.2})), encoding="utf-8")
    arguments = ["train", "--config", str(config), "--data", f"{source}/{{0000..0004}}.tar", "--outdir", str(outdir)]
    trained = CliRunner().invoke(command, arguments)
    assert trained.exit_code == 0, trained.output
    assert "training pictures streamed at 16 px" in trained.output
    (run,) = outdir.iterdir()
    assert "Text/match_gap" in (run / "stats.jsonl").read_text()
    assert CliRunner().invoke(command, [*arguments, "--dry-run"]).exit_code == 0
    refused = CliRunner().invoke(command, ["evaluate", "retrieval", str(run)])
    assert refused.exit_code == 2
    assert "this measure needs the whole data set packed" in refused.output
