"""Sheets of drawn pictures in one file: a picture, an animation, or an HTML page with prompts and seeds as text."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from gan_t2i.core.errors import UsageError
from gan_t2i.core.files import output_file
from gan_t2i.core.html_page import html_figure, html_page
from gan_t2i.core.images import check_writable, encode_picture, save_picture, sheet

PAGE = ".html"
_MOST = 10_000  # pictures of a page; a browser is slow with more
_SIDE = 128  # pixels of a picture on the page; small ones are enlarged by a whole factor
_ACROSS = 8  # pictures side by side where each has its own caption
_STYLE = "img{display:block;image-rendering:pixelated;background:repeating-conic-gradient(#ccc 0 25%,#fff 0 50%) 0 0/16px 16px}"


@dataclass(frozen=True)
class Row:
    """Pictures side by side, RGB or RGBA, under a caption."""

    caption: str
    pictures: Sequence[Image.Image]
    labels: Sequence[str]
    """A label for each picture, such as "seed 3"; pages show them."""


def save_sheet(rows: Sequence[Row], path: Path) -> None:
    """Write rows of equal length to a picture file, or to an HTML page where `path` ends in .html.

    >>> pictures = model.generate("a red heart", seeds=range(4))
    >>> save_sheet([Row("a red heart", pictures, [f"seed {seed}" for seed in range(4)])], Path("hearts.html"))

    The page is one file and loads nothing: its pictures are embedded as PNG files, each marked as generated media. Raises `UsageError` where
    the file cannot be written, or the sheet is too large.
    """
    if path.suffix.lower() != PAGE:
        save_picture(_picture(rows), path)
        return
    _check_page([row.pictures for row in rows])
    with output_file(path) as temporary:
        temporary.write_text(html_page("Pictures drawn by gan_t2i", "\n".join(map(_section, rows)), _STYLE), encoding="utf-8")


def check_sheet(captions: Sequence[str], columns: int, side: int, path: Path) -> None:
    """Raise `UsageError` where `save_sheet` cannot write so many pictures of that side; takes no drawing."""
    blanks = [Image.new("RGB", (side, side))] * columns
    if path.suffix.lower() == PAGE:
        _check_page([blanks] * len(captions))
    else:
        check_writable(path, _picture([Row(caption, blanks, ()) for caption in captions]))


def _check_page(rows: Sequence[Sequence[Image.Image]]) -> None:
    if (count := sum(map(len, rows))) > _MOST:
        raise UsageError(f"a page of {count:,} pictures: at most {_MOST:,} go on one, so ask for fewer, or for files")


def _picture(rows: Sequence[Row]) -> Image.Image:
    alone = {"cell": _SIDE, "blocks": _ACROSS} if len(rows[0].pictures) == 1 else {}  # larger, so that its caption has room
    return sheet([row.pictures for row in rows], [row.caption for row in rows], **alone)


def _section(row: Row) -> str:
    side = row.pictures[0].width
    side = max(side, _SIDE // side * side)
    figures = "\n".join(
        html_figure(encode_picture(picture, "PNG"), label, side=side, alt=f"{row.caption}, {label}")
        for picture, label in zip(row.pictures, row.labels, strict=True)
    )
    return f'<h2>{html.escape(row.caption)}</h2>\n<div class="sheet">\n{figures}\n</div>'
