"""Damaged files of every kind that is read: each is used or refused with the project's own error, in less than a second.

The mutations are drawn by a seed: bits flipped, bytes replaced by telling ones, parts cut out, doubled, moved, or cut off.
"""

import contextlib
import io
import json
import pickle
import random
import tarfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient
from PIL import Image

from gan_t2i import Text2Image
from gan_t2i.checkpoint import load_snapshot, read_tensors
from gan_t2i.core.config import read_yaml, with_overrides
from gan_t2i.core.errors import GanT2IError
from gan_t2i.data.decode import IMAGE_FORMATS, load_image
from gan_t2i.data.packing import META, PackedDataset, pack
from gan_t2i.data.readers import read
from gan_t2i.data.records import LazyFile
from gan_t2i.data.settings import DataSettings
from gan_t2i.runs import RunFolder
from gan_t2i.serving.app import create_app
from gan_t2i.training.config import TrainConfig
from gan_t2i.training.session import Session, prepare
from gan_t2i.training.state import load_state

Read = Callable[[bytes], object]
# Typical stumbling blocks of parsers: signs of length, of ends, of nesting, of numbers that are none.
TELLING = (b"\0", b"\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff", b"\0\0\0\0", b"[", b"{", b'"', b"\n", b"..", b"/", b"NaN", b"1e999", b"-1")
TELLING += (b"null", b"&a", b"*a", b"!!", b": ", b"\t", b"9" * 40, b"\xed\xa0\x80", b"\\ud800", b"\xef\xbb\xbf")


def mutated(content: bytes, rng: random.Random) -> bytes:
    """`content` with one to four things changed; half of the changes lie in the first 512 bytes, where headers stand."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        if not data:
            break
        place = rng.randrange(min(len(data), rng.choice((512, len(data)))))
        length = min(rng.choice((1, 4, 16, 200)), len(data) - place)
        match rng.randrange(6):
            case 0:
                data[place] ^= 1 << rng.randrange(8)
            case 1:
                piece = rng.choice(TELLING)
                data[place : place + len(piece)] = piece
            case 2:
                data[place:place] = rng.choice(TELLING)
            case 3:
                del data[place : place + length]
            case 4:
                part = data[place : place + length]
                target = rng.randrange(len(data))
                data[target:target] = part
            case 5:
                del data[place:]
    return bytes(data)


@pytest.fixture(scope="module")
def counts(counted: Callable[[str], Counter[str]]) -> Counter[str]:
    """How many files of each kind were read."""
    return counted("mutated files, each used or refused")


@pytest.fixture
def throw(counts: Counter[str], request: pytest.FixtureRequest) -> Callable[..., int]:
    """Reads `count` mutations of each seed and returns how many were refused, which must be some.

    Fails on any other error than the project's, on a reason of several lines, and on a slow one.
    """

    def run(kind: str, count: int, seeds: list[bytes], reader: Read) -> int:
        rng = random.Random(f"fuzz {kind}")
        refused = 0
        for seed in seeds:
            reader(seed)  # what nobody has damaged is used
            for number in range(count):
                data = mutated(seed, rng)
                start = time.process_time()  # of this process alone: how busy the machine is does not matter
                reason = None
                try:
                    reader(data)
                except GanT2IError as error:
                    reason = str(error)
                except Exception as error:
                    raise AssertionError(f"{kind} {number} raises {error!r}: {data[:300]!r}") from error
                refused += reason is not None
                assert reason is None or (reason and "\n" not in reason), f"{kind} {number} is refused without one sentence: {reason}"
                assert time.process_time() - start < 1, f"{kind} {number} takes over a second: {data[:300]!r}"
                counts[kind] += 1
        return refused

    return run


def picture(form: str, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.effect_noise((24, 24), 60).convert(mode).save(file, format=form)
    return file.getvalue()


@pytest.mark.parametrize("form", IMAGE_FORMATS)
def test_pictures(throw: Callable[..., int], form: str) -> None:
    def reader(data: bytes) -> None:
        with warnings.catch_warnings():  # as packing does: Pillow warns of much
            warnings.simplefilter("ignore")
            load_image(LazyFile("x", lambda: data), 16)

    assert throw(form, 120, [picture(form)], reader)


def test_svg(throw: Callable[..., int]) -> None:
    shapes = '<g id="a"><path d="M0 0h4v8H0z" fill="#f00"/></g><use href="#a" x="4"/>'
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8">{shapes}</svg>'
    assert throw("SVG", 120, [svg.encode()], lambda data: load_image(LazyFile("x.svg", lambda: data), 16))


def reading_from(path: Path, **settings: Any) -> Read:
    """Reads what a data set makes of bytes at `path`, and its first pictures; what is left out is told with a reason."""

    def reader(data: bytes) -> None:
        path.write_bytes(data)
        reading = read(path if path.suffix in (".tar", ".zip") else path.parent, DataSettings(**settings))
        assert all(item.why for item in reading.bad)
        json.dumps([record.extra for record in reading.records])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for record in reading.records:
                with contextlib.suppress(GanT2IError):
                    load_image(record.image, 16)

    return reader


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "metadata.jsonl",
            '{"file_name": "a.png", "text": "a red circle", "split": "train", "n": 1}\n{"file_name": "b.png", "text": ["x", "y"]}\n',
        ),
        ("metadata.csv", 'file_name,text,n\na.png,"a red, round circle",1\nb.png,x,2\n'),
        ("captions_x.json", '{"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 1, "caption": "a circle"}]}'),
        ("dataset.json", '{"labels": [["a.png", "a circle"], ["b.png", "x"]]}'),
        (
            "icons.json",
            '{"prefix": "x", "icons": {"a-b": {"body": "<path d=\'M0 0h9v9\'/>", "width": 9}}, "aliases": {"c": {"parent": "a-b"}}}',
        ),
        ("a.txt", "a red circle\nround and red\n"),
    ],
    ids=lambda value: value if "\n" not in value and "{" not in value else "",
)
def test_captions(throw: Callable[..., int], tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / "a.png").write_bytes(picture("PNG"))
    (tmp_path / "b.png").write_bytes(picture("PNG"))
    assert throw(name, 150, [content.encode()], reading_from(tmp_path / name))


def test_pickles(throw: Callable[..., int], tmp_path: Path) -> None:
    """CUB's list of names, as Python 2 and as Python 3 write it."""
    for folder, name, content in (("images", "a.jpg", picture("JPEG")), ("text", "a.txt", b"a bird"), ("train", "filenames.pickle", b"")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes(content)

    def reader(data: bytes) -> None:
        (tmp_path / "train" / "filenames.pickle").write_bytes(data)
        read(tmp_path, DataSettings(format="cub"))

    assert throw("pickle", 150, [pickle.dumps(["a", "a"], protocol=protocol) for protocol in (0, 4)], reader)


def test_parquet(throw: Callable[..., int], tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    def table(columns: dict[str, list[Any]]) -> bytes:
        file = io.BytesIO()
        parquet.write_table(pyarrow.table(columns), file)
        return file.getvalue()

    (tmp_path / "a.png").write_bytes(picture("PNG"))
    cells = {"image": [{"bytes": picture("PNG"), "path": None}] * 3, "text": ["a", "b", "c"]}
    for name, columns in (("metadata.parquet", {"file_name": ["a.png"], "caption": ["x"]}), ("train-0.parquet", cells)):
        assert throw(name, 100, [table(columns)], reading_from(tmp_path / name))
        for path in tmp_path.iterdir():  # pictures beside parquet are those that it names
            path.unlink()


def test_tars(throw: Callable[..., int], tmp_path: Path) -> None:
    def tar(form: int) -> bytes:
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=form) as archive:
            for name, content in (("0.png", picture("PNG")), ("0.txt", b"a circle"), ("1.jpg", picture("JPEG")), ("1.txt", b"x" * 30)):
                member = tarfile.TarInfo(name if form == tarfile.USTAR_FORMAT else "deep/" * 30 + name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        return file.getvalue()

    assert throw(
        "tar", 120, [tar(form) for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)], reading_from(tmp_path / "x.tar")
    )


def test_zips(throw: Callable[..., int], tmp_path: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (("a.png", picture("PNG")), ("a.txt", b"a circle"), ("b.png", picture("PNG")), ("b.txt", b"x")):
            archive.writestr(name, content)
    assert throw("zip", 150, [file.getvalue()], reading_from(tmp_path / "x.zip"))


def test_configs(throw: Callable[..., int], small_config: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"

    def reader(data: bytes) -> None:
        path.write_bytes(data)
        TrainConfig.parse(with_overrides(read_yaml(path), ["batch=8"]))

    assert throw(
        "config", 150, [yaml.safe_dump(small_config()).encode(), yaml.safe_dump(TrainConfig().model_dump(mode="json")).encode()], reader
    )


def test_snapshots(throw: Callable[..., int], trained: RunFolder, tmp_path: Path) -> None:
    path = tmp_path / "snapshot.safetensors"

    def reader(data: bytes) -> None:
        path.write_bytes(data)
        load_snapshot(path)

    assert throw("snapshot", 200, [trained.snapshots()[-1].read_bytes()], reader)


def test_states(throw: Callable[..., int], trained: RunFolder, small_config: Callable[..., Any], tmp_path: Path) -> None:
    session: Session = prepare(TrainConfig.parse(small_config()))
    path = tmp_path / "state.safetensors"

    def reader(data: bytes) -> None:
        path.write_bytes(data)
        read_tensors(path)
        load_state(path, session.networks, session.fingerprints)

    assert throw("state", 150, [trained.state.read_bytes()], reader)


def test_packed_folders(throw: Callable[..., int], pictures: Path, tmp_path: Path) -> None:
    folder = pack(pictures, tmp_path / "packed", 16, progress=False).folder

    def reader(data: bytes) -> None:
        (folder / META).write_bytes(data)
        dataset = PackedDataset.open(folder)
        dataset.gather(dataset.train)
        assert all(dataset.captions[index] for ids in dataset.caption_ids for index in ids)

    assert throw("packed", 150, [(folder / META).read_bytes()], reader)


def test_requests(throw: Callable[..., int], trained: RunFolder) -> None:
    """Bodies of requests for pictures: each is answered with 200 or 4xx."""
    with TestClient(create_app(Text2Image.load(trained.path, device="cpu"), "small")) as client:

        def reader(data: bytes) -> None:
            answer = client.post("/v1/images/generations", content=data, headers={"Content-Type": "application/json"})
            assert answer.status_code < 500, answer.text
            if answer.status_code >= 400:
                raise GanT2IError(answer.json()["error"]["message"])

        values = {"prompt": "a red circle", "n": 2, "size": "20x20", "output_format": "webp", "output_compression": 80, "background": "opaque"}
        values |= {
            "response_format": "url",
            "quality": "high",
            "seed": 12,
            "truncation": 0.7,
            "user": "me",
            "stream": False,
            "partial_images": 1,
        }
        assert throw("request", 60, [json.dumps(values).encode()], reader)


def test_they_were_enough(counts: Counter[str], request: pytest.FixtureRequest) -> None:
    """At least two thousand; where a part of this file is run, there is nothing to count."""
    if len({item.name for item in request.session.items if item.path == request.path}) < 18:
        pytest.skip("a part of the file was asked for")
    assert sum(counts.values()) >= 2000
