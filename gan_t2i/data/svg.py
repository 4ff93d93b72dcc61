"""Draw SVG to PNG, in other processes, because SVG files come from strangers. This file, run as a script, is such a process.

It can open no file and no connection, its memory is limited, and an alarm ends it. In the caller's process a bomb would take all memory, and
resvg would read any picture on this machine that an SVG names.
"""

import atexit
import contextlib
import importlib.util
import os
import re
import resource
import signal
import struct
import subprocess
import sys
import xml.etree.ElementTree as ET
from typing import BinaryIO

SUFFIX = ".svg"
MAX_BYTES = 1 << 23
MAX_SECONDS = 10
MAX_MEMORY = 1 << 30  # bytes
MAX_RATIO = 16  # of the longer side to the shorter one
_REQUEST, _ANSWER = struct.Struct(">IId7s"), struct.Struct(">?I")  # (bytes, side, seconds, colour), (is it a PNG, bytes)
_SVG = "http://www.w3.org/2000/svg"
_LENGTH = re.compile(r"\s*([\d.]+(?:e\d+)?)(?:px)?\s*")
_WITH_LINKS = ("image", "feImage", "use")  # elements that draw what they link to
_RASTER = re.compile(r"data:image/(png|jpe?g|gif|webp)[;,]")

_idle: list["_Renderer"] = []


def is_installed() -> bool:
    """Return True if SVG can be drawn: the extra icons is installed."""
    return importlib.util.find_spec("resvg_py") is not None


def render(svg: bytes, side: int, colour: str) -> bytes:
    """Draw an SVG with a shorter side of `side` pixels on a transparent ground; returns a PNG.

    `colour`, as #rrggbb, is that of shapes that leave it to the page (currentColor). Text is not drawn, as fonts differ among machines. Raises
    ValueError where the extra is missing, or the SVG is broken, too large, or refers to anything outside.
    """
    if not is_installed():
        raise ValueError("SVG needs resvg-py: pip install 'gan-t2i[icons]'")
    if len(svg) > MAX_BYTES:
        raise ValueError(f"the SVG has more than {MAX_BYTES} bytes")
    try:
        renderer = _idle.pop()
    except IndexError:
        renderer = _Renderer()
    try:
        is_drawn, content = renderer.ask(svg, side, colour)
    except BaseException as error:  # Ctrl-C leaves half an answer behind
        renderer.end()
        if not isinstance(error, (OSError, struct.error)):
            raise
        raise ValueError(f"resvg does not draw it in {MAX_SECONDS} seconds and {MAX_MEMORY >> 20} MiB") from error
    _idle.append(renderer)
    if not is_drawn:
        raise ValueError(content.decode())
    return content


class _Renderer:
    """Another process that draws; a thread has it for one drawing at a time."""

    def __init__(self) -> None:
        # -P: the folder of this file, which would come first, has modules of the library's names
        pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
        command = [sys.executable, "-P", __file__]
        # a group of its own, which Ctrl-C does not reach
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nothing, process_group=0)

    def ask(self, svg: bytes, side: int, colour: str) -> tuple[bool, bytes]:
        requests, answers = self._process.stdin, self._process.stdout
        assert requests is not None
        assert answers is not None
        requests.write(_REQUEST.pack(len(svg), side, MAX_SECONDS, colour.encode()) + svg)
        requests.flush()
        is_drawn, size = _ANSWER.unpack(answers.read(_ANSWER.size))
        return is_drawn, answers.read(size)

    def end(self) -> None:
        self._process.kill()
        with contextlib.suppress(OSError):  # what it has not read
            self._process.communicate()


@atexit.register
def _end_all() -> None:
    while _idle:
        _idle.pop().end()


os.register_at_fork(after_in_child=_idle.clear)  # the pipes belong to the parent


def checked(svg: bytes, side: int, colour: str) -> str:
    """Return the SVG at its size in pixels, without document type, entities and comments; raises ValueError for one that must not be drawn."""
    root = ET.fromstring(svg)  # expands no external entities, and no bombs
    drawn = (element for element in root.iter() if element.tag.rpartition("}")[2] in _WITH_LINKS)
    for link in (value for element in drawn for key, value in element.attrib.items() if key.rpartition("}")[2] == "href"):
        if not link.startswith("#") and not _RASTER.match(link):
            raise ValueError(f"the SVG refers to {link[:80]!r}, and nothing outside is opened")
    width, height = _size(root)
    scale = side / min(width, height)
    root.attrib |= {"width": f"{width * scale:.3f}", "height": f"{height * scale:.3f}"}
    root.attrib.setdefault("color", colour)
    return ET.tostring(root, encoding="unicode")


def _size(root: ET.Element) -> tuple[float, float]:
    """Return the size that gives the shape of the picture; a missing viewBox is set."""
    box = root.get("viewBox")
    if box is None:
        sides = [match[1] for key in ("width", "height") if (match := _LENGTH.fullmatch(root.get(key, "")))]
        if len(sides) < 2:
            raise ValueError("the SVG has neither a viewBox nor a width and a height in pixels")
        box = " ".join(["0", "0", *sides])
        root.set("viewBox", box)
    try:
        _, _, width, height = map(float, box.replace(",", " ").split())
    except ValueError as error:
        raise ValueError(f"the viewBox {box[:80]!r} is not four numbers") from error
    if not 0 < width <= MAX_RATIO * height <= MAX_RATIO**2 * width:
        raise ValueError(f"the SVG is {width:g} x {height:g}, and the longer side may be {MAX_RATIO} times the shorter one at most")
    return width, height


def _serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until there are no more."""
    import resvg_py

    ET.register_namespace("", _SVG)
    list(ET.fromstring(f'<svg xmlns="{_SVG}"/>').iter())  # whatever the parser loads must be loaded now
    with contextlib.suppress(ValueError):  # where the system sets a lower limit
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))  # those that are open: it can open no other
    while header := requests.read(_REQUEST.size):
        size, side, seconds, colour = _REQUEST.unpack(header)
        svg = requests.read(size)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            content = bytes(resvg_py.svg_to_bytes(svg_string=checked(svg, side, colour.decode()), skip_system_fonts=True))
            is_drawn = True
        except Exception as error:
            content, is_drawn = " ".join(str(error).split()).encode() or type(error).__name__.encode(), False
        signal.setitimer(signal.ITIMER_REAL, 0)
        answers.write(_ANSWER.pack(is_drawn, len(content)) + content)
        answers.flush()


if __name__ == "__main__":
    _serve(sys.stdin.buffer, sys.stdout.buffer)
