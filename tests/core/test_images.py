import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from gan_t2i.core.images import composite, composite_on_grey, composite_on_grey_uint8, from_uint8, save_picture, sheet, to_pictures


def solid(colour, side=16):
    return Image.new("RGB", (side, side), colour)


def test_bytes_map_onto_minus_one_to_one():
    images = from_uint8(torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 3, 1, 1))
    torch.testing.assert_close(images.flatten(), torch.tensor([-1.0, -0.6, 1.0]))
    assert images.dtype == torch.float32


def test_every_byte_survives_the_way_there_and_back():
    pixels = torch.randperm(256 * 3, generator=torch.Generator().manual_seed(0)).remainder(256).to(torch.uint8).reshape(1, 3, 16, 16)
    (picture,) = to_pictures(from_uint8(pixels))
    assert picture.mode == "RGB"
    assert np.array_equal(np.asarray(picture), pixels[0].permute(1, 2, 0).numpy())


def test_the_way_there_is_channels_last():
    assert from_uint8(torch.zeros(2, 3, 4, 4, dtype=torch.uint8)).is_contiguous(memory_format=torch.channels_last)


def test_what_is_out_of_range_is_clamped_and_not_wrapped():
    (picture,) = to_pictures(torch.tensor([-1.5, 3.0, 0.0]).reshape(1, 3, 1, 1))
    assert picture.getpixel((0, 0)) == (0, 255, 128)
    (picture,) = to_pictures(torch.tensor([-1.0, 1.0, 0.5]).reshape(1, 3, 1, 1).bfloat16())
    assert picture.getpixel((0, 0)) == (0, 255, 191)


@pytest.mark.parametrize("background", [(255, 255, 255), (0, 0, 0), (48, 128, 192)])
def test_a_transparent_picture_over_a_colour_is_what_was_drawn_over_it(background):
    alpha = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    colours = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * alpha  # premultiplied
    images = torch.cat([colours, alpha], dim=1) * 2 - 1
    images[:, :, :4] = torch.tensor([0.5, -1.5, 0, -2]).reshape(1, 4, 1, 1)  # out of range: nothing is seen
    (picture,) = to_pictures(images)
    assert picture.mode == "RGBA"
    assert not np.asarray(picture)[:4].any()
    wanted = composite(images.clamp(-1, 1), torch.tensor([background]) / 255)
    wanted[:, :, :4] = (torch.tensor(background) / 127.5 - 1)[None, :, None, None]
    below = Image.new("RGBA", picture.size, background)
    seen = np.asarray(Image.alpha_composite(below, picture).convert("RGB")).astype(int)
    assert np.abs(seen - np.asarray(to_pictures(wanted)[0])).max() <= 1


def test_a_plain_background_is_the_same_for_tensors_and_files():
    pixels = torch.randint(0, 256, (1, 4, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels[:, :3] = torch.minimum(pixels[:, :3], pixels[:, 3:])
    (picture,) = to_pictures(from_uint8(pixels))
    difference = np.asarray(composite_on_grey(picture)).astype(int) - composite_on_grey_uint8(pixels)[0].permute(1, 2, 0).numpy()
    assert np.abs(difference).max() <= 1
    assert composite_on_grey_uint8(torch.zeros(1, 4, 1, 1, dtype=torch.uint8)).flatten().tolist() == [128] * 3
    red = solid("red")
    assert np.array_equal(np.asarray(composite_on_grey(red)), np.asarray(red))


@pytest.mark.parametrize("suffix", ["jpg", "mpo", "bmp", "ppm", "pcx"])
def test_a_transparent_picture_is_on_white_in_a_format_without_transparency(tmp_path, suffix):
    save_picture(Image.new("RGBA", (16, 16)), tmp_path / f"blank.{suffix}")
    with Image.open(tmp_path / f"blank.{suffix}") as picture:
        assert picture.convert("RGBA").getextrema() == ((255, 255),) * 4


def test_a_sheet_shows_transparency_as_a_checkerboard():
    half = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    half.paste((255, 0, 0, 255), (0, 0, 8, 16))
    pixels = np.asarray(sheet([[half]], [""], cell=16))
    assert (pixels == (255, 0, 0)).all(axis=2).sum() == 8 * 16
    assert (pixels == (204, 204, 204)).all(axis=2).sum() == 8 * 8, "one of the two squares below the clear half"


def test_rows_and_columns_stay_in_place():
    image = -torch.ones(1, 3, 2, 3)
    image[0, 0, 1, 2] = 1
    (picture,) = to_pictures(image)
    assert picture.size == (3, 2)
    assert picture.getpixel((2, 1)) == (255, 0, 0)


def test_a_sheet_shows_every_picture_enlarged_by_a_whole_factor_in_its_row():
    rows = [[solid("red"), solid("lime")], [solid("blue"), solid("magenta")], [solid("cyan"), solid("yellow")]]
    result = sheet(rows, ["one", "two", "three"], cell=40, blocks=2)
    pixels = np.asarray(result)
    corners = {}
    for row in rows:
        for picture in row:
            colour = picture.getpixel((0, 0))
            places = np.argwhere((pixels == colour).all(axis=2))
            assert len(places) == 32 * 32, "16 px fit twice into a cell of 40"
            assert (places.max(axis=0) - places.min(axis=0) == 31).all()
            corners[colour] = tuple(places.min(axis=0))
    (red_y, red_x), (lime_y, lime_x) = corners[255, 0, 0], corners[0, 255, 0]
    assert lime_y == red_y
    assert lime_x == red_x + 32
    assert corners[0, 0, 255][0] == red_y, "the second row is in the second block, beside the first"
    assert corners[0, 0, 255][1] > lime_x
    assert corners[0, 255, 255][1] == red_x, "the third is under the first"
    assert corners[0, 255, 255][0] > red_y


def test_captions_are_drawn_above_their_row_and_change_with_it():
    row = [[solid("white", 64)]]
    blank, told, other = (np.asarray(sheet(row, [text])) for text in ("", "a red heart", "a blue star"))
    assert (blank == 255).all()
    assert (told != 255).any()
    assert told.shape == other.shape
    assert (told != other).any()


def test_a_picture_larger_than_a_cell_keeps_its_pixels_and_a_long_caption_its_width():
    result = sheet([[solid("red", 200)]], ["word " * 200], cell=96)
    assert (np.asarray(result) == (255, 0, 0)).all(axis=2).sum() == 200 * 200
    assert result.width < 230


def test_a_caption_of_any_script_can_be_drawn():
    drawn = sheet([[solid("red")]], ["红色 ❤ קלב"])
    assert (np.asarray(drawn) < 128).all(axis=2).any()  # letters, or boxes in their place, but something


def test_rows_without_a_caption_are_a_mistake():
    with pytest.raises(ValueError, match="zip"):
        sheet([[solid("red")], [solid("blue")]], ["one"])


def test_captions_beyond_latin_take_a_wider_font(monkeypatch):
    asked = []
    own, truetype = ImageFont.load_default(13), ImageFont.truetype

    def look(font, size, **options):
        if not isinstance(font, str):  # Pillow's own font comes as bytes
            return truetype(font, size, **options)
        asked.append(font)
        return own

    monkeypatch.setattr(ImageFont, "truetype", look)
    picture = Image.new("RGB", (16, 16), "red")
    sheet([[picture]], ["a red circle"])
    assert not asked
    sheet([[picture]], ["红色圆形"])
    assert asked == ["NotoSansCJK-Regular.ttc"]
