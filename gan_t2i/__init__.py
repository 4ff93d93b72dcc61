"""gan_t2i: a text-to-image GAN that you train on your own captioned pictures.

>>> from gan_t2i import Text2Image
>>> pictures = Text2Image.load("latest").generate(["a red heart above a blue star"], seeds=[0, 1])
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gan_t2i.sampling import Text2Image, generate_image

__version__ = "0.1.0"
__all__ = ["Text2Image", "__version__", "generate_image"]


def __getattr__(name: str) -> Any:
    # torch is imported only when a picture is drawn, so that `gan-t2i --help` answers at once.
    if name in ("Text2Image", "generate_image"):
        from gan_t2i import sampling

        return getattr(sampling, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
