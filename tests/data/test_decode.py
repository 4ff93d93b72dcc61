"""Decoding: modes, crops, orientation, background, and refused pictures."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.data import decode
from gan_t2i.data.decode import load_image
from gan_t2i.data.packing import pack
from gan_t2i.data.readers.base import IMAGE_SUFFIXES
from gan_t2i.data.settings import DataSettings


def make_data(folder: Path, count: int = 6, size: int = 16) -> Path:
    """Write `count` pictures of a single colour with a caption each."""
    folder.mkdir(exist_ok=True)
    for index in range(count):
        Image.new("RGB", (size, size), (index * 10, 0, 255 - index)).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"picture {index}", encoding="utf-8")
    return folder


def _palette_with_alpha() -> Image.Image:
    image = Image.new("P", (16, 16), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    return image


PALETTE = _palette_with_alpha()


@pytest.mark.parametrize(
    ("image", "suffix", "options", "colour"),
    [
        (Image.new("RGB", (16, 16), (10, 20, 30)), "png", {}, (10, 20, 30)),
        (Image.new("RGB", (16, 16), (10, 20, 30)), "bmp", {}, (10, 20, 30)),
        (Image.new("RGB", (16, 16), (10, 20, 30)), "webp", {"lossless": True}, (10, 20, 30)),
        (Image.new("RGB", (16, 16), (10, 20, 30)), "png", {"transparency": (10, 20, 30)}, (255, 255, 255)),
        (Image.new("L", (16, 16), 77), "png", {}, (77, 77, 77)),
        (Image.new("L", (16, 16), 77), "jpg", {"quality": 100}, (77, 77, 77)),
        (Image.new("L", (16, 16), 77), "png", {"transparency": 77}, (255, 255, 255)),
        (Image.new("LA", (16, 16), (100, 0)), "png", {}, (255, 255, 255)),
        (Image.new("LA", (16, 16), (100, 51)), "png", {}, (224, 224, 224)),
        (Image.new("RGBA", (16, 16), (255, 0, 100, 255)), "png", {}, (255, 0, 100)),
        (Image.new("RGBA", (16, 16), (255, 0, 100, 0)), "png", {}, (255, 255, 255)),
        (Image.new("RGBA", (16, 16), (255, 0, 100, 51)), "png", {}, (255, 204, 224)),
        (PALETTE, "png", {}, (10, 200, 30)),
        (PALETTE, "gif", {}, (10, 200, 30)),
        (PALETTE, "png", {"transparency": 1}, (255, 255, 255)),
        (PALETTE, "gif", {"transparency": 1}, (255, 255, 255)),
        (PALETTE, "png", {"transparency": bytes([255, 51])}, (206, 244, 210)),
        (Image.new("1", (16, 16), 1), "png", {}, (255, 255, 255)),
        (Image.new("1", (16, 16), 0), "png", {}, (0, 0, 0)),
        (Image.new("1", (16, 16), 0), "png", {"transparency": 0}, (255, 255, 255)),
        (Image.new("I;16", (16, 16), 128 * 257), "png", {}, (128, 128, 128)),
        (Image.new("I;16", (16, 16), 65535), "png", {}, (255, 255, 255)),
        (Image.new("I;16", (16, 16), 128 * 257), "png", {"transparency": 128 * 257}, (255, 255, 255)),
        (Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "jpg", {"quality": 100}, (255, 0, 0)),
        (Image.new("CMYK", (16, 16), (255, 0, 0, 128)), "jpg", {"quality": 100}, (0, 127, 127)),
    ],
)
def test_every_mode_keeps_its_colour_and_transparency_is_composited_on_white(tmp_path, image, suffix, options, colour):
    path = tmp_path / f"a.{suffix}"
    image.save(path, **options)
    pixels = load_image(path, 16)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (3, 16, 16)
    assert {tuple(pixel) for pixel in pixels.reshape(3, -1).T.tolist()} == {colour}


@pytest.mark.parametrize("suffix", [suffix for suffix in IMAGE_SUFFIXES if suffix != ".svg"])
def test_every_suffix_that_is_read_can_be_decoded(tmp_path, suffix):
    form = next(form for form, suffixes in decode.IMAGE_FORMATS.items() if suffix in suffixes)
    Image.new("1" if suffix == ".pbm" else "RGB", (16, 16), "white").save(tmp_path / f"a{suffix}", form)
    (tmp_path / "a.txt").write_text("white", encoding="utf-8")
    dataset = pack(tmp_path, tmp_path / "packed", 16, progress=False)
    assert dataset.captions == ["white"]
    assert dataset.images.min() > 250


def test_a_suffix_may_lie_about_the_format(tmp_path):
    Image.new("RGB", (16, 16), "red").save(tmp_path / "a.jpg", "AVIF")
    assert load_image(tmp_path / "a.jpg", 16)[0].min() > 240


def test_floating_point_pixels_are_refused(tmp_path):
    Image.new("F", (16, 16), 0.5).save(tmp_path / "a.tiff")
    with pytest.raises(GanT2IError, match="the image has floating-point pixels"):
        load_image(tmp_path / "a.tiff", 16)


def test_mode_i_is_scaled_like_16_bit_grey():
    # What Pillow before 11 makes of a 16-bit PNG.
    assert decode.to_rgb(Image.new("I", (2, 2), 128 * 257), "white").getpixel((0, 0)) == (128, 128, 128)


def test_premultiplied_and_palette_alpha_modes_are_composited():
    image = Image.new("RGBA", (2, 2), (255, 0, 100, 51))
    assert decode.to_rgb(image.convert("RGBa"), "white").getpixel((0, 0)) == (255, 204, 224)
    image = Image.new("PA", (2, 2))
    image.putpalette([255, 0, 100])
    assert decode.to_rgb(image, "white").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("size", [(64, 16), (16, 64), (65, 16)])
def test_the_centre_square_is_taken(tmp_path, size):
    image = Image.new("RGB", size, "black")
    image.paste("red", ((size[0] - 16) // 2, (size[1] - 16) // 2, (size[0] - 16) // 2 + 16, (size[1] - 16) // 2 + 16))
    image.save(tmp_path / "a.png")
    assert np.array_equal(load_image(tmp_path / "a.png", 16)[:, 0, 0], [255, 0, 0])
    assert load_image(tmp_path / "a.png", 16)[1:].max() == 0
    assert load_image(tmp_path / "a.png", 16)[0].min() == 255


@pytest.mark.parametrize("suffix", ["png", "webp", "jpg", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_picture_is_upright_whatever_its_exif_orientation(tmp_path, orientation, suffix):
    upright = Image.new("RGB", (32, 32), "white")
    upright.paste("red", (0, 0, 16, 16))
    upright.paste("blue", (16, 0, 32, 16))
    # How a camera stores it: the inverse of what a viewer does.
    inverse = {6: decode.UPRIGHT[8], 8: decode.UPRIGHT[6]}.get(orientation, decode.UPRIGHT.get(orientation))
    stored = upright if inverse is None else upright.transpose(inverse)
    exif = Image.Exif()
    exif[decode.ORIENTATION] = orientation
    stored.save(tmp_path / f"a.{suffix}", exif=exif, quality=100, **({"lossless": True} if suffix == "webp" else {}))
    pixels = load_image(tmp_path / f"a.{suffix}", 32).astype(int)
    expected = np.asarray(upright).transpose(2, 0, 1).astype(int)
    assert np.abs(pixels - expected)[:, 4:12, 4:12].max() <= 3
    assert np.abs(pixels - expected)[:, 4:12, 20:28].max() <= 3


def striped(width: int, height: int) -> Image.Image:
    """Return a picture with red in the left quarter, blue in the right one, and lime between."""
    image = Image.new("RGB", (width, height), "lime")
    image.paste("red", (0, 0, width // 4, height))
    image.paste("blue", (width * 3 // 4, 0, width, height))
    return image


def test_crop_takes_the_centre_squeezes_or_adds_borders(tmp_path):
    striped(64, 32).save(tmp_path / "a.png")
    center, fit, pad = (load_image(tmp_path / "a.png", 32, DataSettings(crop=crop)) for crop in ("center", "fit", "pad"))
    assert (center[1].min(), center[0].max(), center[2].max()) == (255, 0, 0)
    assert fit[:, 16, 2].tolist() == fit[:, 1, 2].tolist() == [255, 0, 0]
    assert fit[:, 16, 29].tolist() == [0, 0, 255]
    assert fit[:, 16, 16].tolist() == [0, 255, 0]
    assert pad[:, :8].min() == pad[:, 24:].min() == 255
    assert pad[:, 8, 2].tolist() == pad[:, 23, 2].tolist() == [255, 0, 0]
    assert pad[:, 16, 29].tolist() == [0, 0, 255]
    assert load_image(tmp_path / "a.png", 32).tolist() == center.tolist()


@pytest.mark.parametrize("crop", ["center", "fit", "pad"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_wide_picture_is_upright_in_every_crop(tmp_path, orientation, crop):
    upright = striped(64, 32)
    inverse = {6: decode.UPRIGHT[8], 8: decode.UPRIGHT[6]}.get(orientation, decode.UPRIGHT.get(orientation))
    exif = Image.Exif()
    exif[decode.ORIENTATION] = orientation
    upright.save(tmp_path / "upright.png")
    (upright if inverse is None else upright.transpose(inverse)).save(tmp_path / "stored.png", exif=exif)
    settings = DataSettings(crop=crop, background="black")
    assert np.array_equal(load_image(tmp_path / "stored.png", 16, settings), load_image(tmp_path / "upright.png", 16, settings))


@pytest.mark.parametrize(
    ("image", "options"),
    [
        (Image.new("RGBA", (16, 16), (255, 0, 100, 0)), {}),
        (Image.new("LA", (16, 16), (100, 0)), {}),
        (PALETTE, {"transparency": 1}),
        (Image.new("RGB", (16, 16), (10, 20, 30)), {"transparency": (10, 20, 30)}),
        (Image.new("I;16", (16, 16), 128 * 257), {"transparency": 128 * 257}),
    ],
)
def test_transparent_pictures_show_the_background(tmp_path, image, options):
    image.save(tmp_path / "a.png", **options)
    pixels = load_image(tmp_path / "a.png", 16, DataSettings(background="#102030"))
    assert {tuple(pixel) for pixel in pixels.reshape(3, -1).T.tolist()} == {(16, 32, 48)}


@pytest.mark.parametrize("background", ["plaid", "", "#12", "#11223344", "transparent"])
def test_the_background_is_an_opaque_colour(background):
    with pytest.raises(UsageError, match=r"config key background: .* is not a colour such as white or #ffeecc"):
        DataSettings.parse({"background": background})


def test_metadata_of_a_picture_do_not_enter_the_packed_folder(tmp_path):
    source = make_data(tmp_path / "data", 0)
    exif = Image.Exif()
    exif[0x010E] = "SECRET description"
    Image.new("RGB", (16, 16)).save(source / "a.jpg", exif=exif, comment=b"SECRET comment")
    (source / "a.txt").write_text("black", encoding="utf-8")
    assert b"SECRET" in (source / "a.jpg").read_bytes()
    folder = pack(source, tmp_path / "packed", 16, progress=False).folder
    assert not any(b"SECRET" in path.read_bytes() for path in folder.iterdir())


def test_a_broken_exif_block_does_not_spoil_the_picture(tmp_path):
    source = make_data(tmp_path / "data", 0)
    Image.new("L", (16, 16), 77).save(source / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\0", quality=100)
    (source / "a.txt").write_text("grey", encoding="utf-8")
    # Pillow warns of it, which pack keeps from the user.
    assert pack(source, tmp_path / "packed", 16, progress=False).images.max() == 77


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_large_picture_is_reduced_to_its_mean(tmp_path, suffix):
    # A checkerboard finer than the result: what is not filtered would show as black or white.
    board = (np.indices((512, 512)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(board).save(tmp_path / f"a.{suffix}", quality=100)
    pixels = load_image(tmp_path / f"a.{suffix}", 16).astype(int)
    assert np.abs(pixels - 127.5).max() <= 3


def _png_of(width: int, height: int) -> bytes:
    """Return a PNG whose header has a size and whose pixels are missing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + chunk(b"IDAT", b"")


def _noise(path: Path, suffix: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path.with_suffix(suffix))
    content = path.with_suffix(suffix).read_bytes()
    path.with_suffix(suffix).unlink()
    return content[: len(content) // 2]


BAD_PICTURES = [
    (lambda p: b"", "unreadable image", "the file is not one of: PNG, JPEG, WEBP, BMP, GIF"),
    (lambda p: b"no picture", "unreadable image", "the file is not one of: "),
    (lambda p: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n", "unreadable image", "the file is not one of: "),
    (lambda p: _noise(p, ".png"), "unreadable image", "the image cannot be read: "),
    (lambda p: _noise(p, ".jpg"), "unreadable image", "the image cannot be read: image file is truncated"),
    (lambda p: _noise(p, ".webp"), "unreadable image", "the "),
    (lambda p: _noise(p, ".bmp"), "unreadable image", "the image cannot be read: image file is truncated"),
    (lambda p: _png_of(7, 100), "image too small", "the image has 7 x 100 pixels, less than 8 a side"),
    (lambda p: _png_of(8193, 8192), "image over the pixel cap", "the image has 8193 x 8192 pixels, more than 67108864"),
    (lambda p: _png_of(10_000, 10_000), "image over the pixel cap", "the image has 10000 x 10000 pixels, more than 67108864"),
    (lambda p: _png_of(60_000, 60_000), "image over the pixel cap", "the image has more than 67108864 pixels"),
]


@pytest.mark.parametrize(("make", "kind", "why"), BAD_PICTURES)
def test_a_bad_picture_is_counted_or_refused(tmp_path, make, kind, why):
    source = make_data(tmp_path / "data", 1)
    (source / "bad.txt").write_text("bad", encoding="utf-8")
    (source / "bad.png").write_bytes(make(tmp_path / "noise"))
    dataset = pack(source, tmp_path / "packed", 16, progress=False)
    assert dataset.captions == ["picture 0"]
    assert dataset.report.bad == {kind: 1}
    assert dataset.report.first_bad[0][0] == "bad.txt (bad.png)"
    assert dataset.report.first_bad[0][1].startswith(why)
    with pytest.raises(GanT2IError, match=r"^bad.txt \(bad.png\): ") as error:
        pack(source, tmp_path / "refused", 16, DataSettings(on_bad="error"), progress=False)
    assert error.value.args[0].endswith(dataset.report.first_bad[0][1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "packed"]
