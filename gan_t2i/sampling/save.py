"""Pictures to files, named by prompt and seed, marked as drawn by a model."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from gan_t2i import __version__
from gan_t2i.errors import UsageError
from gan_t2i.files import atomic_file, slug

# IPTC's term for pictures made by a trained model, in the XMP field that picture tools read.
_XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    'Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"/></rdf:RDF></x:xmpmeta>'
)


def file_names(prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """Names of the pictures of every prompt with every seed, prompt by prompt; prompts that would share a name are numbered."""
    stems: list[str] = []
    for prompt in prompts:
        stem = slug(prompt)
        if stem == slug("") or len(slug(prompt, len(prompt))) > len(stem):  # nothing left, or cut: the digest keeps prompts apart
            stem += "-" + hashlib.blake2b(prompt.encode(), digest_size=3).hexdigest()
        number = sum(earlier == stem or earlier.startswith(f"{stem}.") for earlier in stems)
        stems.append(f"{stem}.{number + 1}" if number else stem)
    return [f"{stem}-seed{seed}.png" for stem in stems for seed in seeds]


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
