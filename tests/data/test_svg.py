"""Drawing SVG: what comes out, and that a drawing of a stranger opens nothing and takes no more than its share."""

import base64
import io
import json
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest
from PIL import Image

from gan_t2i.core.errors import GanT2IError
from gan_t2i.data import svg
from gan_t2i.data.decode import BadImageError, load_image
from gan_t2i.data.inspect.pictures import facts_of
from gan_t2i.data.packing import pack, source_key
from gan_t2i.data.records import LazyFile
from gan_t2i.data.settings import DataSettings

pytest.importorskip("resvg_py")
NAMES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
SQUARE = '<rect x="2" y="2" width="4" height="4" fill="red"/>'


def drawing(body: str = SQUARE, size: str = 'viewBox="0 0 8 8"', before: str = "") -> bytes:
    return f"{before}<svg {NAMES} {size}>{body}</svg>".encode()


def drawn(content: bytes, side: int = 16, colour: str = "#000000") -> Image.Image:
    return Image.open(io.BytesIO(svg.render(content, side, colour)))


def captioned(folder: Path) -> Path:
    folder.mkdir()
    (folder / "a.svg").write_bytes(drawing())
    (folder / "a.txt").write_text("a red square", encoding="utf-8")
    return folder


def test_an_svg_is_drawn_at_the_size_that_is_asked_for():
    assert drawn(drawing(), 32).size == (32, 32)
    assert drawn(drawing(size='viewBox="-4,-4 16 8"'), 32).size == (64, 32)
    assert drawn(drawing(size='width="8px" height="16"'), 32).size == (32, 64)
    assert drawn(drawing(size='viewBox="0 0 8 8" width="1e9" height="1e9"'), 32).size == (32, 32)
    image = drawn(drawing())
    assert (image.getpixel((8, 8)), image.getpixel((0, 0))[3]) == ((255, 0, 0, 255), 0)


def test_shapes_without_a_colour_take_the_one_given():
    current = '<rect width="8" height="8" fill="currentColor"/>'
    assert drawn(drawing(current), colour="#00ff80").getpixel((8, 8)) == (0, 255, 128, 255)
    assert drawn(drawing(current, 'viewBox="0 0 8 8" color="blue"'), colour="#00ff80").getpixel((8, 8)) == (0, 0, 255, 255)
    assert load_image(LazyFile("a.SVG", lambda: drawing(current)), 16, DataSettings(foreground="lime"))[:, 8, 8].tolist() == [0, 255, 0]


def test_packing_takes_alpha_and_background_as_of_a_png(tmp_path):
    captioned(tmp_path / "data")
    opaque = pack(tmp_path / "data", tmp_path / "opaque", 16, DataSettings(background="blue"), progress=False)
    clear = pack(tmp_path / "data", tmp_path / "clear", 16, DataSettings(alpha=True), progress=False)
    assert opaque.images[0, :, 8, 8].tolist() == [255, 0, 0]
    assert opaque.images[0, :, 0, 0].tolist() == [0, 0, 255]
    assert clear.images[0, :, 8, 8].tolist() == [255, 0, 0, 255]
    assert not clear.images[0, :, 0, 0].any()


@pytest.mark.parametrize("form", ["metadata.jsonl", "a.txt", "tar"])
def test_every_reader_reads_svg(tmp_path, form):
    source = captioned(tmp_path / "data")
    if form == "metadata.jsonl":
        (source / form).write_text(json.dumps({"file_name": "a.svg", "text": "a red square"}), encoding="utf-8")
    if form == "tar":
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            archive.add(source, arcname="")
        source = tmp_path / "a.tar"
    packed = pack(source, tmp_path / "packed", 16, progress=False)
    assert packed.captions == ["a red square"]
    assert packed.images[0, :, 8, 8].tolist() == [255, 0, 0]


def test_inspection_draws_svg():
    assert facts_of(LazyFile("a.svg", drawing), "white").size == (256, 256)


def test_without_the_extra_a_sentence_says_how_to_install_it(tmp_path, monkeypatch):
    source = captioned(tmp_path / "data")
    before = source_key(source, 16, DataSettings())
    monkeypatch.setattr(svg.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(GanT2IError, match=r"none of its 1 images .*SVG needs resvg-py: pip install 'gan-t2i\[icons\]'"):
        pack(source, tmp_path / "packed", 16, progress=False)
    # what was packed without it is packed again with it
    assert source_key(source, 16, DataSettings()) != before


def in_base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def red_png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "PNG")
    return file.getvalue()


# each is ten of the one before
USES = "".join(f'<g id="u{n}">' + f'<use href="#u{n - 1}"/>' * 10 + "</g>" for n in range(1, 8))
LAUGHS = "".join(f'<!ENTITY l{n} "' + f"&l{n - 1};" * 10 + '">' for n in range(1, 10))
NESTED = in_base64(drawing('<image href="red.png" width="8" height="8"/>'))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (drawing('<image href="FOLDER/red.png" width="8" height="8"/>'), "refers to .*red.png"),
        (drawing('<image xlink:href="file:FOLDER/red.png" width="8" height="8"/>'), "nothing outside is opened"),
        (drawing('<image href="https://example.org/red.png" width="8" height="8"/>'), "nothing outside is opened"),
        (drawing('<use href="other.svg#a"/>'), "nothing outside is opened"),
        (drawing('<filter id="f"><feImage href="FOLDER/red.png"/></filter><rect filter="url(#f)"/>'), "nothing outside is opened"),
        (drawing(f'<image href="data:image/svg+xml;base64,{NESTED}" width="8" height="8"/>'), "nothing outside is opened"),
        (
            drawing("&x;", before='<!DOCTYPE svg [<!ENTITY x "&#60;image href=&#34;FOLDER/red.png&#34;/&#62;">]>'),
            "nothing outside is opened",
        ),
        (drawing("&x;", before='<!DOCTYPE svg [<!ENTITY x SYSTEM "FOLDER/a.txt">]>'), "undefined entity"),
        (drawing("&l9;", before=f'<!DOCTYPE svg [<!ENTITY l0 "{"x" * 100}">{LAUGHS}]>'), "amplification"),
        (drawing(f'<defs><g id="u0">{SQUARE * 10}</g>{USES}</defs><use href="#u7"/>'), "nodes limit"),
        (drawing("<g>" * 50_000 + "</g>" * 50_000), "recursion"),
        (drawing(size='viewBox="0 0 1000 1"'), "16 times"),
        (drawing(size='viewBox="0 0 nan 8"'), "longer side"),
        (drawing(size='viewBox="0 0 8"'), "not four numbers"),
        (drawing(size='width="100%" height="8"'), "neither a viewBox nor"),
        (drawing("<g>"), "mismatched tag"),
        (drawing(""), "nothing is drawn"),
        (b"", "no element"),
        (b"\x89PNG", "not well-formed"),
    ],
)
def test_what_is_broken_or_refers_to_anything_outside_is_refused(tmp_path, content, why):
    (tmp_path / "red.png").write_bytes(red_png())
    (tmp_path / "a.svg").write_bytes(content.replace(b"FOLDER", str(tmp_path).encode()))
    with pytest.raises(BadImageError, match=why):
        load_image(tmp_path / "a.svg", 16)
    assert drawn(drawing()).getpixel((8, 8)) == (255, 0, 0, 255)


def test_a_picture_inside_is_drawn():
    assert drawn(drawing(f'<image href="data:image/png;base64,{in_base64(red_png())}" width="8" height="8"/>')).getpixel((8, 8)) == (
        255,
        0,
        0,
        255,
    )


def test_the_process_that_draws_can_open_nothing(tmp_path):
    """The second wall: without the check, a picture outside is still not there."""
    (tmp_path / "red.png").write_bytes(red_png())
    outside = drawing(f'<image href="{tmp_path}/red.png" width="8" height="8"/>')
    code = (
        "import io, sys, runpy; from gan_t2i.data import svg; import xml.etree.ElementTree as ET\n"
        "svg.checked = lambda content, side, colour: content.decode()\n"
        "svg._serve(sys.stdin.buffer, sys.stdout.buffer)"
    )
    request = svg._REQUEST.pack(len(outside), 8, 10.0, b"#000000") + outside
    answer = subprocess.run([sys.executable, "-c", code], input=request, capture_output=True, check=True).stdout
    assert answer[0] == 1
    assert Image.open(io.BytesIO(answer[svg._ANSWER.size :])).getbbox() is None


def test_a_drawing_that_takes_too_long_is_given_up(monkeypatch):
    endless = '<filter id="f"><feTurbulence numOctaves="2000000000" baseFrequency="0.5"/></filter>'
    monkeypatch.setattr(svg, "MAX_SECONDS", 0.3)
    with pytest.raises(ValueError, match=r"does not draw it in 0\.3 seconds"):
        svg.render(drawing(f'{endless}<rect width="8" height="8" filter="url(#f)"/>'), 16, "#000000")
    monkeypatch.undo()
    assert drawn(drawing()).getpixel((8, 8)) == (255, 0, 0, 255)


def test_a_drawing_that_takes_too_much_memory_is_given_up():
    with pytest.raises(ValueError, match="1024 MiB"):
        svg.render(drawing(), 40_000, "#000000")


def test_a_file_that_is_too_large_is_not_read(monkeypatch, tmp_path):
    monkeypatch.setattr(svg, "MAX_BYTES", 50)
    (tmp_path / "a.svg").write_bytes(drawing())
    with pytest.raises(BadImageError, match="more than 50 bytes"):
        load_image(tmp_path / "a.svg", 16)


def test_threads_share_no_process():
    sizes: dict[int, tuple[int, int]] = {}

    def draw(side: int) -> None:
        for _ in range(5):
            sizes[side] = drawn(drawing(), side).size

    threads = [threading.Thread(target=draw, args=(side,)) for side in (16, 32, 64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sizes == {side: (side, side) for side in (16, 32, 64)}
