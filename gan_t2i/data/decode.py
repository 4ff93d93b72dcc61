"""A picture, from a file or from bytes, to RGB, or RGB and alpha, at the training resolution. Only the orientation of its metadata counts.

With alpha, colours are multiplied by it (premultiplied). A resized picture then is right at its edges, whatever colour hides where nothing is
seen; a generator that adds up its resolutions is linear in what is seen; and it has nothing to learn for colours that nobody can see.
Legend: C channels, 3 or 4, R resolution in pixels.
"""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from gan_t2i.core.errors import GanT2IError
from gan_t2i.data.records import LazyFile
from gan_t2i.data.settings import DataSettings

MIN_SIDE = 8  # pixels
MAX_PIXELS = 64 * 1024 * 1024
# Pillow's other formats (EPS, PSD, FITS, ...) are rare in data sets, and much larger ground for a hostile file.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
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
# JPEG decodes at 1/2 to 1/8 of its size, and everything is box-reduced, as long as this many pixels are left for one of the result.
REDUCING_GAP = 3

Pixels = npt.NDArray[np.uint8]  # [C, R, R]


class BadImageError(GanT2IError):
    """A picture that cannot be used; `kind` is the one of its `BadItem`."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind = kind


def load_image(source: Path | LazyFile, resolution: int, settings: DataSettings | None = None) -> Pixels:
    """The picture as uint8 [C, R, R], upright, cropped and over the background, or premultiplied with its alpha, as `settings` say; raises
    `BadImageError`."""
    settings = settings or DataSettings()
    with open_image(source) as image:
        return _to_pixels(image, resolution, settings)


@contextlib.contextmanager
def open_image(source: Path | LazyFile) -> Iterator[Image.Image]:
    """The picture, of an allowed size, not yet decoded; whatever fails inside raises `BadImageError`."""
    try:
        file = io.BytesIO(source.read()) if isinstance(source, LazyFile) else source
        with Image.open(file, formats=IMAGE_FORMATS) as image:
            _check_size(image.size)
            yield image
    except BadImageError:
        raise
    except Image.DecompressionBombError as error:
        raise BadImageError("image over the pixel cap", f"the image has more than {MAX_PIXELS} pixels") from error
    except UnidentifiedImageError as error:
        raise BadImageError("unreadable image", f"the file is not one of: {', '.join(IMAGE_FORMATS)}") from error
    # Pillow's decoders raise nearly any class (SyntaxError, struct.error, EOFError, ...) on a broken file, and so do archives.
    except Exception as error:
        why = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise BadImageError("unreadable image", f"the image cannot be read: {why}") from error


def _check_size(size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise BadImageError("image over the pixel cap", f"the image has {width} x {height} pixels, more than {MAX_PIXELS}")
    if min(size) < MIN_SIDE:
        raise BadImageError("image too small", f"the image has {width} x {height} pixels, less than {MIN_SIDE} a side")


def _to_pixels(image: Image.Image, resolution: int, settings: DataSettings) -> Pixels:
    image.draft(None, (REDUCING_GAP * resolution, REDUCING_GAP * resolution))  # does something for JPEG alone
    width, height = image.size
    longest, side = max(image.size), min(image.size)
    left, top = (width - side) // 2, (height - side) // 2
    box = (left, top, left + side, top + side) if settings.crop == "center" else (0, 0, width, height)
    image.load()
    part = image if box == (0, 0, width, height) else image.crop(box)
    part = to_rgba(part).convert("RGBa") if settings.alpha else to_rgb(part, settings.background)
    # After the crop: a PNG's EXIF may stand behind its pixels, and a fault in those must not pass for a fault in it.
    turn = UPRIGHT.get(_orientation(image))
    size = (resolution, resolution)
    if settings.crop == "pad":
        size = (max(1, round(width * resolution / longest)), max(1, round(height * resolution / longest)))
    part = part.resize(size, Image.Resampling.LANCZOS, reducing_gap=REDUCING_GAP)
    if turn is not None:
        part = part.transpose(turn)
    if part.size != (resolution, resolution):
        board = Image.new(part.mode, (resolution, resolution), 0 if settings.alpha else settings.background)
        board.paste(part, ((resolution - part.width) // 2, (resolution - part.height) // 2))
        part = board
    pixels = np.ascontiguousarray(np.asarray(part).transpose(2, 0, 1))  # [R, R, C] -> [C, R, R]
    if settings.alpha:
        np.minimum(pixels[:3], pixels[3:], out=pixels[:3])  # Lanczos swings beyond, and no premultiplied colour is above its alpha
    return pixels


def to_image(pixels: Pixels) -> Image.Image:
    """What `load_image` gave as a picture of Pillow: RGB, or RGBA with plain colours."""
    rows = np.ascontiguousarray(pixels.transpose(1, 2, 0))  # [R, R, C]
    if rows.shape[2] == 3:
        return Image.fromarray(rows)
    return Image.frombytes("RGBa", (rows.shape[1], rows.shape[0]), rows.tobytes()).convert("RGBA")


def _orientation(image: Image.Image) -> int:
    if not image.info:  # as in most PNGs: whatever could hold it stands there
        return 1
    # A broken EXIF block does not spoil the picture; its parser raises as many classes as a decoder.
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) else 1


def to_rgb(image: Image.Image, background: str) -> Image.Image:
    """Any mode as RGB: 16-bit grey is scaled (Pillow would clip it), and transparency stands over the background."""
    if not image.has_transparency_data and not image.mode.startswith("I"):
        return image if image.mode == "RGB" else image.convert("RGB")
    colours = to_rgba(image)
    below = Image.new("RGBA", colours.size, background)
    return Image.alpha_composite(below, colours).convert("RGB")


def to_rgba(image: Image.Image) -> Image.Image:
    """Any mode as RGBA, 16-bit grey scaled."""
    return _grey16_to_rgba(image) if image.mode.startswith("I") else image.convert("RGBA")


def _grey16_to_rgba(image: Image.Image) -> Image.Image:
    values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
    grey = ((values * 255 + 32767) // 65535).astype(np.uint8)
    # The one grey that a PNG's tRNS chunk declares transparent.
    opaque = np.where(values == image.info.get("transparency", -1), np.uint8(0), np.uint8(255))
    return Image.fromarray(np.stack([grey, grey, grey, opaque], axis=2))  # [H, W, 4]
