"""Conversion between tensors, pictures and files, alpha compositing, and contact sheets. N batch, C channels, H x W pixels."""

import contextlib
import io
import logging
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from gan_t2i import __version__
from gan_t2i.core.errors import UsageError
from gan_t2i.core.files import check_folder, output_file
from gan_t2i.core.marks import ORIGIN, XMP

log = logging.getLogger(__name__)

QUALITY = 95
"""Quality of JPEG and WebP files, of 100."""
ANIMATED = (".gif", ".webp")
MARKED = {"PNG", "JPEG", "WEBP", "AVIF", "TIFF", "PDF"}  # Pillow's formats in which it writes XMP
OPAQUE = {"JPEG", "MPO", "BMP", "DIB", "PPM", "PCX", "EPS"}  # those in which it writes no transparency
TIFF_XMP = 700  # the tag of XMP in TIFF
_GAP = 8  # pixels between the parts of a sheet
_TEXT_SIZE = 13
_LINE = 17
_LARGEST = 170_000_000  # pixels of a sheet; Pillow does not open pictures with much more
_SQUARE = 8  # pixels of the checkerboard below transparent pictures
GREY = 128  # of 255, below transparent pictures where a plain background is needed: black and white can both be seen on it
# Fonts with Chinese, Japanese, Korean and more, as Linux, macOS and Windows name their files.
_WIDE_FONTS = ("NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "DroidSansFallbackFull.ttf", "PingFang.ttc", "Arial Unicode.ttf", "msyh.ttc")


def from_uint8(images: Tensor) -> Tensor:
    """Convert uint8 [N, C, H, W] to float32 in [-1, 1], channels_last, the fastest layout for convolutions."""
    return (images.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def composite(images: Tensor, background: Tensor) -> Tensor:
    """Composite images [N, 4, H, W] with premultiplied colours in [-1, 1] over one colour each, [N, 3] in [0, 1]; returns [N, 3, H, W].

    Images without alpha are returned unchanged. The result is linear in the image and not clamped: where a generator's alpha or colours leave
    their range it shows, and a gradient flows back.
    """
    if images.shape[1] == 3:
        return images
    return images[:, :3] + (1 - images[:, 3:]) * background[:, :, None, None].to(images.device)


def composite_on_grey_uint8(images: Tensor) -> Tensor:
    """Composite uint8 images [N, 4, H, W] with premultiplied colours over grey, [N, 3, H, W]; images of 3 channels are returned unchanged."""
    if images.shape[1] == 3:
        return images
    return images[:, :3] + ((255 - images[:, 3:]).float() * (GREY / 255)).round().to(torch.uint8)


def composite_on_grey(picture: Image.Image) -> Image.Image:
    """Return an RGBA picture over the same grey, for measures and networks without transparency; an RGB picture stays as it is."""
    return _on(picture, (GREY, GREY, GREY))


def on_white(picture: Image.Image) -> Image.Image:
    """Return an RGBA picture over white, for files without transparency; an RGB picture stays as it is."""
    return _on(picture, (255, 255, 255))


def _on(picture: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    if picture.mode != "RGBA":
        return picture.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", picture.size, background), picture).convert("RGB")


def to_uint8(pictures: Sequence[Image.Image]) -> Tensor:
    """Convert pictures, RGBA ones over grey, to uint8 [N, 3, H, W]."""
    return torch.from_numpy(np.stack([np.asarray(composite_on_grey(picture)) for picture in pictures])).permute(0, 3, 1, 2).contiguous()


def to_pictures(images: Tensor) -> list[Image.Image]:
    """Convert float [N, C, H, W], clamped to [-1, 1], to RGB pictures, or from premultiplied colours and alpha to RGBA ones."""
    levels = (images.float().clamp(-1, 1) + 1) * 127.5  # [N, C, H, W], 0 to 255
    if levels.shape[1] == 4:
        alpha = levels[:, 3:].round()  # as it will be written, so that colour times alpha is what was drawn
        colours = (levels[:, :3] * 255 / alpha.clamp(min=1)).clamp(max=255) * (alpha > 0)
        levels = torch.cat([colours, alpha], dim=1)
    pixels = levels.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(array) for array in pixels]


def _font_for(text: str) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return Pillow's own font for Latin letters, and for other scripts the first installed one of a few with many scripts."""
    if any(ord(letter) > 0x24F for letter in text):
        for name in _WIDE_FONTS:
            with contextlib.suppress(OSError):  # not installed; Pillow looks through the system's font folders
                return ImageFont.truetype(name, _TEXT_SIZE)
    return ImageFont.load_default(_TEXT_SIZE)


def sheet(rows: Sequence[Sequence[Image.Image]], captions: Sequence[str], *, cell: int = 96, blocks: int = 2) -> Image.Image:
    """Lay all rows out in one picture, each under its caption, in `blocks` columns of rows.

    Args:
        rows: pictures of one caption each, RGB or RGBA; rows have the same length.
        captions: one per row.
        cell: side of a picture in the sheet; small pictures are enlarged by a whole factor where one fits, pixels left visible.

    Raises `UsageError` for a sheet that is too large to be opened.
    """
    side = rows[0][0].width
    cell = max(side, cell // side * side)
    width = len(rows[0]) * cell
    font = _font_for("".join(captions))
    wrapped = [textwrap.wrap(caption, max(8, width // 7))[:3] or [""] for caption in captions]
    height = max(map(len, wrapped)) * _LINE + cell + _GAP
    blocks = min(blocks, len(rows))
    lines = -(-len(rows) // blocks)
    size = blocks * (width + _GAP) + _GAP, lines * height + _GAP
    if size[0] * size[1] > _LARGEST:
        raise UsageError(f"a sheet of {len(rows):,} x {len(rows[0]):,} pictures would have {size[0]:,} x {size[1]:,} pixels: ask for fewer")
    result = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(result)
    for index, (row, text) in enumerate(zip(rows, wrapped, strict=True)):
        x = _GAP + (index % blocks) * (width + _GAP)
        y = _GAP // 2 + (index // blocks) * height
        draw.multiline_text((x, y), "\n".join(text), fill="black", font=font, spacing=_LINE - _TEXT_SIZE)
        for column, picture in enumerate(row):
            enlarged = picture.resize((cell, cell), Image.Resampling.NEAREST)
            if picture.mode == "RGBA":
                enlarged = Image.alpha_composite(_checkerboard(cell), enlarged)
            result.paste(enlarged.convert("RGB"), (x + column * cell, y + height - cell - _GAP // 2))
    return result


def _checkerboard(side: int) -> Image.Image:
    """Return the light squares that stand for transparency in picture editors."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    light = 255 - 51 * ((rows // _SQUARE + columns // _SQUARE) % 2)  # [side, side]
    return Image.fromarray(light.to(torch.uint8).numpy()).convert("RGBA")


def check_writable(path: Path, picture: Image.Image | None = None) -> None:
    """Raise `UsageError` where `path` cannot be written, or not in the format that it ends in; `picture` is as large as the one to come."""
    check_folder(path)
    try:
        _encode(picture or Image.new("RGB", (16, 16)), io.BytesIO(), path)
    except Exception as error:  # Pillow has many writers, and each raises what it likes
        size = f" at {picture.width:,} x {picture.height:,} pixels" if picture else ""
        raise UsageError(f"cannot write {path}{size}: {' '.join(str(error).split())}; name a .png file") from error


def save_picture(picture: Image.Image, path: str | Path, origin: str = "") -> None:
    """Write a picture in the format that `path` ends in, with the mark of generated media (IPTC) if that can hold it.

    A transparent picture lies on white in formats without transparency, such as JPEG. The file does not hold the prompt. `origin`: for a PNG,
    an identifier that `read_origin` returns. Raises `UsageError` where `path` cannot be written.
    """
    path = Path(path)
    with output_file(path) as temporary:
        _encode(picture, temporary, path, origin)
    _warn_of_no_mark(path)


def save_animation(frames: Sequence[Image.Image], path: Path, seconds: float = 2.0) -> None:
    """Write pictures to a .gif or .webp that shows them in `seconds`, then in reverse, for ever. Raises `UsageError` as `save_picture`."""
    there_and_back = [*frames, *frames[-2:0:-1]]
    with output_file(path) as temporary:
        there_and_back[0].save(
            temporary,
            format=path.suffix[1:],
            save_all=True,
            append_images=there_and_back[1:],
            duration=round(1000 * seconds / len(frames)),  # milliseconds of each
            loop=0,
            quality=QUALITY,
            xmp=XMP.encode(),
        )
    _warn_of_no_mark(path)


def encode_picture(picture: Image.Image, form: str, quality: int = QUALITY) -> bytes:
    """Return a file of the format `form` of Pillow, with the marks of `save_picture`; `quality` is that of JPEG and WebP, 0 to 100."""
    file = io.BytesIO()
    _write(picture, file, form, quality=quality)
    return file.getvalue()


def read_origin(path: Path) -> str | None:
    """Return the identifier that a PNG was saved with; None for any other file."""
    try:
        with Image.open(path) as picture:
            return picture.info.get(ORIGIN)
    except Exception:  # not a picture, or a damaged one
        return None


def _warn_of_no_mark(path: Path) -> None:
    if Image.registered_extensions().get(path.suffix.lower()) not in MARKED:
        log.warning(f"{path}: this format has no place for the mark of generated pictures; .png, .jpg, .webp, .avif and .tif have one")


def _encode(picture: Image.Image, file: Path | io.BytesIO, path: Path, origin: str = "") -> None:
    """Write to `file` in the format that the suffix of `path` names."""
    suffix = path.suffix.lower()
    form = Image.registered_extensions().get(suffix, "")
    if form not in Image.SAVE:
        raise OSError(f"Pillow writes no format that ends in {suffix!r}" if suffix else "the name has no ending")
    _write(picture, file, form, origin)


def _write(picture: Image.Image, file: Path | io.BytesIO, form: str, origin: str = "", quality: int = QUALITY) -> None:
    if form in OPAQUE:
        picture = on_white(picture)
    if form == "TIFF":
        picture.save(file, format=form, tiffinfo={TIFF_XMP: XMP.encode()})
        return
    if form != "PNG":
        picture.save(file, format=form, quality=quality, xmp=XMP.encode())
        return
    info = PngInfo()
    info.add_text("Software", f"gan_t2i {__version__}")
    info.add_itxt("XML:com.adobe.xmp", XMP)
    if origin:
        info.add_text(ORIGIN, origin)
    picture.save(file, format=form, pnginfo=info)
