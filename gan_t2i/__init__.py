"""A text-to-image GAN that you train on your own captioned pictures.

>>> from gan_t2i import Text2Image, generate_image
>>> generate_image("a red heart above a blue star").save("heart.png")  # by the small model that comes with the package
>>> model = Text2Image.load("latest")  # your newest run in ./runs
>>> pictures = model.generate(["a red heart", "a blue star"], seeds=[0, 1])
>>> run = gan_t2i.train(data="my_pictures", minutes=30)  # and then run.model()

Errors that you can cause are `GanT2IError`, each with one sentence on what is wrong and what is allowed.
"""

from typing import TYPE_CHECKING, Any

from gan_t2i.core.errors import GanT2IError, UsageError

if TYPE_CHECKING:
    from gan_t2i.api import Run, train
    from gan_t2i.core.images import save_picture
    from gan_t2i.sampling import Text2Image, generate_image

__version__ = "0.1.0"
__all__ = ["GanT2IError", "Run", "Text2Image", "UsageError", "__version__", "generate_image", "save_picture", "train"]


def __getattr__(name: str) -> Any:
    # torch is imported on first use, so that `gan-t2i --help` answers at once.
    if name in ("Text2Image", "generate_image"):
        from gan_t2i import sampling

        return getattr(sampling, name)
    if name in ("Run", "train"):
        from gan_t2i import api

        return getattr(api, name)
    if name == "save_picture":
        from gan_t2i.core import images

        return images.save_picture
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__  # for completion, which would not know the names above
