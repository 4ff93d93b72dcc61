"""Between tensors, pictures and files, and sheets of pictures with their captions drawn in."""

import contextlib
import textwrap
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from gan_t2i import __version__
from gan_t2i.errors import UsageError
from gan_t2i.files import atomic_file

_GAP = 8  # pixels between the parts of a sheet
_TEXT_SIZE = 13
_LINE = 17
# Fonts with Chinese, Japanese, Korean and more, as Linux, macOS and Windows name their files.
_WIDE_FONTS = ("NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "DroidSansFallbackFull.ttf", "PingFang.ttc", "Arial Unicode.ttf", "msyh.ttc")
# IPTC's term for pictures made by a trained model, in the XMP field that picture tools read.
_XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    'Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"/></rdf:RDF></x:xmpmeta>'
)


def from_uint8(images: Tensor) -> Tensor:
    """uint8 [N, 3, H, W] -> float32 in [-1, 1]; channels_last, which the convolutions are fastest with."""
    return (images.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def to_pictures(images: Tensor) -> list[Image.Image]:
    """float [N, 3, H, W] in [-1, 1], clamped -> RGB pictures."""
    pixels = ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(array) for array in pixels]


def _font_for(text: str) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, which knows Latin letters; for other scripts the first installed one of a few that know many."""
    if any(ord(letter) > 0x24F for letter in text):
        for name in _WIDE_FONTS:
            with contextlib.suppress(OSError):  # not installed; Pillow looks through the system's font folders
                return ImageFont.truetype(name, _TEXT_SIZE)
    return ImageFont.load_default(_TEXT_SIZE)


def sheet(rows: Sequence[Sequence[Image.Image]], captions: Sequence[str], *, cell: int = 96, blocks: int = 2) -> Image.Image:
    """One picture of all rows, each under its caption, laid out in `blocks` columns of rows.

    Args:
        rows: pictures of one caption each; all rows of the same length.
        captions: one a row.
        cell: side of a picture in the sheet; small pictures are enlarged by a whole factor where one fits, pixels left visible.
    """
    side = rows[0][0].width
    cell = max(side, cell // side * side)
    width = len(rows[0]) * cell
    font = _font_for("".join(captions))
    wrapped = [textwrap.wrap(caption, max(8, width // 7))[:3] or [""] for caption in captions]
    height = max(map(len, wrapped)) * _LINE + cell + _GAP
    blocks = min(blocks, len(rows))
    lines = -(-len(rows) // blocks)
    result = Image.new("RGB", (blocks * (width + _GAP) + _GAP, lines * height + _GAP), "white")
    draw = ImageDraw.Draw(result)
    for index, (row, text) in enumerate(zip(rows, wrapped, strict=True)):
        x = _GAP + (index % blocks) * (width + _GAP)
        y = _GAP // 2 + (index // blocks) * height
        draw.multiline_text((x, y), "\n".join(text), fill="black", font=font, spacing=_LINE - _TEXT_SIZE)
        for column, picture in enumerate(row):
            enlarged = picture.convert("RGB").resize((cell, cell), Image.Resampling.NEAREST)
            result.paste(enlarged, (x + column * cell, y + height - cell - _GAP // 2))
    return result


def save_png(picture: Image.Image, path: Path) -> None:
    """Write a PNG that says it was drawn by a model, and nothing of its prompt; raises `UsageError` where `path` cannot be written."""
    info = PngInfo()
    info.add_text("Software", f"gan_t2i {__version__}")
    info.add_itxt("XML:com.adobe.xmp", _XMP)
    try:
        with atomic_file(path) as temporary:
            picture.save(temporary, format="PNG", pnginfo=info)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
