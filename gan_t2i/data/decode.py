"""Decode a picture, from a file or from bytes, to RGB or RGBA at the training resolution. Of its metadata only the orientation is used. An
SVG is drawn at that resolution.

RGBA colours are premultiplied by alpha. So resizing does not bleed hidden colours into the edges, a generator that adds up its resolutions is
linear in the visible colour, and it need not learn colours that are invisible. Legend: C channels, 3 or 4; R resolution in pixels.
"""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor, UnidentifiedImageError

from gan_t2i.core.errors import GanT2IError
from gan_t2i.data import svg
from gan_t2i.data.records import LazyFile
from gan_t2i.data.settings import DataSettings

MIN_SIDE = 8  # pixels
SVG_SIDE = 256  # pixels, where no size is asked for
MAX_PIXELS = 64 * 1024 * 1024
# The formats that are read, by Pillow's names. Its others (EPS, PSD, FITS, ...) are rare in data sets, and a much larger attack surface.
IMAGE_FORMATS = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2", ".j2k", ".jpf", ".jpx"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
ORIENTATION = 0x0112  # EXIF tag
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# JPEG decodes at 1/2 to 1/8 of its size, and everything is box-reduced, while this many pixels remain for each of the result.
REDUCING_GAP = 3

Pixels = npt.NDArray[np.uint8]  # [C, R, R]


class Decoded(NamedTuple):
    """A picture at the training resolution, and True if part of it was transparent."""

    pixels: Pixels
    is_transparent: bool


class BadImageError(GanT2IError):
    """A picture that cannot be used; `kind` becomes that of its `BadItem`."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind = kind


def load_image(source: Path | LazyFile, resolution: int, settings: DataSettings | None = None) -> Pixels:
    """Return the picture as uint8 [C, R, R], upright and cropped, on the background or premultiplied by its alpha, as `settings` ask; raises
    `BadImageError`."""
    return decode_image(source, resolution, settings or DataSettings()).pixels


def decode_image(source: Path | LazyFile, resolution: int, settings: DataSettings) -> Decoded:
    """Return the result of `load_image`, and whether the picture was transparent; raises `BadImageError`."""
    with open_image(source, resolution, settings.foreground) as image:
        return _decode(image, resolution, settings)


def picture_size(source: Path | LazyFile) -> tuple[int, int]:
    """Return width and height of the picture once it is upright, in pixels, without decoding it; raises `BadImageError`."""
    with open_image(source) as image:
        width, height = image.size
        return (height, width) if _orientation(image) >= 5 else (width, height)


@contextlib.contextmanager
def open_image(source: Path | LazyFile, side: int = SVG_SIDE, foreground: str = "black") -> Iterator[Image.Image]:
    """Open the picture, whose size is checked, without decoding it; every failure inside the context raises `BadImageError`.

    An SVG is drawn with a shorter side of `side` pixels, and in `foreground` where it leaves the colour to the page.
    """
    try:
        file = io.BytesIO(source.read()) if isinstance(source, LazyFile) else source
        is_svg = source.name.lower().endswith(svg.SUFFIX)
        if is_svg:
            colour = "#{:02x}{:02x}{:02x}".format(*ImageColor.getrgb(foreground))
            with file.open("rb") if isinstance(file, Path) else file as drawing:
                file = io.BytesIO(svg.render(drawing.read(svg.MAX_BYTES + 1), side, colour))
        with Image.open(file, formats=tuple(IMAGE_FORMATS)) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise BadImageError("image over the pixel cap", f"the image has {width} x {height} pixels, more than {MAX_PIXELS}")
            if min(width, height) < MIN_SIDE:
                raise BadImageError("image too small", f"the image has {width} x {height} pixels, less than {MIN_SIDE} a side")
            if image.mode == "F":
                raise BadImageError("unreadable image", "the image has floating-point pixels, and does not say which of them is white")
            if is_svg and image.getbbox() is None:
                raise BadImageError("empty image", "nothing is drawn in the SVG")
            yield image
    except BadImageError:
        raise
    except Image.DecompressionBombError as error:
        raise BadImageError("image over the pixel cap", f"the image has more than {MAX_PIXELS} pixels") from error
    except UnidentifiedImageError as error:
        raise BadImageError("unreadable image", f"the file is not one of: {', '.join(IMAGE_FORMATS)}") from error
    # on a broken file Pillow's decoders raise nearly any class (SyntaxError, struct.error, EOFError, ...), and so do archives
    except Exception as error:
        why = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise BadImageError("unreadable image", f"the image cannot be read: {why}") from error


def _decode(image: Image.Image, resolution: int, settings: DataSettings) -> Decoded:
    image.draft(None, (REDUCING_GAP * resolution, REDUCING_GAP * resolution))  # affects JPEG alone
    width, height = image.size
    longest, side = max(image.size), min(image.size)
    left, top = (width - side) // 2, (height - side) // 2
    box = (left, top, left + side, top + side) if settings.crop == "center" else (0, 0, width, height)
    image.load()
    part = image if box == (0, 0, width, height) else image.crop(box)
    transparent = is_transparent(part)
    part = to_rgba(part).convert("RGBa") if settings.alpha else to_rgb(part, settings.background)
    # after the crop: a PNG's EXIF may follow its pixels, and a fault in those must not pass for one in the EXIF
    turn = UPRIGHT.get(_orientation(image))
    size = (resolution, resolution)
    if settings.crop == "pad":
        size = (max(1, round(width * resolution / longest)), max(1, round(height * resolution / longest)))
    part = part.resize(size, Image.Resampling.LANCZOS, reducing_gap=REDUCING_GAP)
    if turn is not None:
        part = part.transpose(turn)
    if part.size != (resolution, resolution):
        canvas = Image.new(part.mode, (resolution, resolution), 0 if settings.alpha else settings.background)
        canvas.paste(part, ((resolution - part.width) // 2, (resolution - part.height) // 2))
        part, transparent = canvas, transparent or settings.alpha
    pixels = np.ascontiguousarray(np.asarray(part).transpose(2, 0, 1))  # [R, R, C] -> [C, R, R]
    if settings.alpha:
        np.minimum(pixels[:3], pixels[3:], out=pixels[:3])  # Lanczos overshoots, and no premultiplied colour exceeds its alpha
    return Decoded(pixels, transparent)


def to_image(pixels: Pixels) -> Image.Image:
    """Convert the result of `load_image` to a Pillow image: RGB, or RGBA with straight colours."""
    rows = np.ascontiguousarray(pixels.transpose(1, 2, 0))  # [R, R, C]
    if rows.shape[2] == 3:
        return Image.fromarray(rows)
    return Image.frombytes("RGBa", (rows.shape[1], rows.shape[0]), rows.tobytes()).convert("RGBA")


def _orientation(image: Image.Image) -> int:
    if not image.info:  # as in most PNGs: EXIF would be listed there
        return 1
    # a broken EXIF block does not spoil the picture; its parser raises as many classes as a decoder
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) else 1


def is_transparent(image: Image.Image) -> bool:
    """Return True if a pixel of the image is not opaque."""
    return image.has_transparency_data and bool(np.asarray(to_rgba(image))[..., 3].min() < 255)  # [H, W, 4]


def to_rgb(image: Image.Image, background: str) -> Image.Image:
    """Convert any mode to RGB: 16-bit grey is scaled (Pillow would clip it), and transparency is composited on the background."""
    if not image.has_transparency_data and not image.mode.startswith("I"):
        return image if image.mode == "RGB" else image.convert("RGB")
    foreground = to_rgba(image)
    return Image.alpha_composite(Image.new("RGBA", foreground.size, background), foreground).convert("RGB")


def to_rgba(image: Image.Image) -> Image.Image:
    """Convert any mode to RGBA; 16-bit grey is scaled."""
    if not image.mode.startswith("I"):
        return image.convert("RGBA")
    values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
    grey = ((values * 255 + 32767) // 65535).astype(np.uint8)
    # a PNG's tRNS chunk declares a single grey transparent
    opaque = np.where(values == image.info.get("transparency", -1), np.uint8(0), np.uint8(255))
    return Image.fromarray(np.stack([grey, grey, grey, opaque], axis=2))  # [H, W, 4]
