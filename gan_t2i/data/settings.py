"""Settings of the data, with their only defaults: the command line, training and Python all use these."""

from typing import Annotated, Literal

from PIL import ImageColor
from pydantic import Field, field_validator, model_validator

from gan_t2i.core.config import StrictConfig
from gan_t2i.core.errors import UsageError

Format = Literal["auto", "imagefolder", "openclip", "stylegan", "iconify", "coco", "cub", "tars", "parquet", "pairs"]


class DataSettings(StrictConfig):
    """How the pictures and captions of a source are read and packed."""

    format: Format = "auto"
    """Format of the source, or of the files in a zip; auto detects it."""
    caption_column: str | None = None
    """Column or key of the captions in tables and metadata; None tries text, caption, prompt and title."""
    caption_lines: Literal["first", "all"] = "all"
    """Lines of a text file that are captions of its picture."""
    image_root: str | None = None
    """Folder of the pictures that a table, COCO or dataset.json file names; None takes the file's own."""
    crop: Literal["center", "fit", "pad"] = "center"
    """The centre square, the whole picture squeezed into a square, or the whole picture with borders in the background colour."""
    background: str = "white"
    """Colour behind transparent pictures and of borders: a name such as white, or #ffeecc."""
    foreground: str = "black"
    """Colour of icons that have none of their own (currentColor)."""
    alpha: bool = False
    """Keep transparency as a fourth channel and learn to generate it; the background is not used, and borders are transparent."""
    caption_forms: tuple[str, ...] = ("{}",)
    """Forms of every caption, such as "an icon of {}", one of which is shown at a time; {} stands for the caption, and is the first form."""
    caption_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the words that are left out in further copies of the training captions; 0 makes none."""
    caption_shuffle: bool = False
    """Shuffle comma-separated tags in further copies of the training captions."""
    recolour: Annotated[int, Field(ge=0, le=4)] = 0
    """Copies of each training picture in other colours, with the colour in the caption, for sets of things by their English names."""
    flags: bool = False
    """Read the flags of countries and regions in icon sets."""
    skin_tones: bool = False
    """Read the icons of people in every skin tone, not in yellow alone."""
    on_bad: Literal["skip", "error"] = "skip"
    """Count unusable items and leave them out, or stop at the first."""
    redact: bool = False
    """Remove e-mail and web addresses, phone numbers and handles from the captions."""
    holdout_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """Share of the captions held out from training, where the data set has no split of its own."""

    @property
    def channels(self) -> int:
        """Number of channels of a packed picture: 4 with transparency, else 3."""
        return 4 if self.alpha else 3

    @field_validator("caption_forms")
    @classmethod
    def _hold_a_caption(cls, forms: tuple[str, ...]) -> tuple[str, ...]:
        if forms[:1] != ("{}",) or any(form.count("{}") != 1 for form in forms):
            raise ValueError(f'{list(forms)} must begin with the plain "{{}}", and each form must have one {{}} for the caption')
        return forms

    @field_validator("background", "foreground")
    @classmethod
    def _is_colour(cls, colour: str) -> str:
        try:
            is_opaque = len(ImageColor.getrgb(colour)) == 3
        except ValueError:
            is_opaque = False
        if not is_opaque:
            raise ValueError(f"{colour!r} is not a colour such as white or #ffeecc")
        return colour


class DataConfig(DataSettings):
    """Source of the pictures and captions, and how training reads them."""

    source: str = "shapes"
    """A folder, file or brace pattern of tars, hf:owner/name, or a built-in set: shapes, basic-shapes, emoji."""
    stream: bool = False
    """Train on tars in place, without packing them: for sets larger than the cache's disk."""
    shuffle_buffer: Annotated[int, Field(ge=2)] = 10_000
    """Size of a stream's shuffle buffer, in pictures."""
    recolour_share: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the pictures with recoloured copies of which a pass shows one; fewer leave more time for the pictures themselves."""
    caption_weights: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (1.0,)
    """How often a picture is shown with its first caption, its second and so on, by proportion; the last weight is that of all others too."""

    def require_packed(self, user: str, advice: str = "leave one of them out") -> None:
        """Raise `UsageError` if the data are streamed; `user` is the setting or the command that needs all of them packed."""
        if self.stream:
            raise UsageError(f"{user} needs the whole data set packed, and data.stream trains without packing it: {advice}")

    @model_validator(mode="after")
    def _made_when_packed(self) -> "DataConfig":
        for name in ("alpha", "caption_forms", "caption_dropout", "caption_shuffle", "recolour", "caption_weights"):
            if getattr(self, name) != type(self).model_fields[name].default:
                self.require_packed(f"data.{name}")
        return self
