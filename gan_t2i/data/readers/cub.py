"""CUB-200-2011 in the layout of AttnGAN: train/filenames.pickle and test/filenames.pickle list stems such as
001.Black_footed_Albatross/Black_Footed_Albatross_0001; text/STEM.txt holds ten captions, CUB_200_2011/images/STEM.jpg is the picture."""

import io
import pickle
import pickletools
from collections.abc import Sequence
from typing import Never

from gan_t2i.core.errors import GanT2IError
from gan_t2i.data.readers.base import MAX_CAPTION_FILE, Gallery, Reading, Source, captions_of_text, printable
from gan_t2i.data.readers.tree import FileSource, Rejected
from gan_t2i.data.records import HELDOUT, TRAIN, BadItems

SIDES = {"train/filenames.pickle": TRAIN, "test/filenames.pickle": HELDOUT}
IMAGE_FOLDERS = ("CUB_200_2011/images", "images")
MAX_PICKLE = 1 << 24  # bytes; the real ones have 500 kB
# Opcodes of a list of strings, in any protocol. Besides classes this excludes everything that takes more memory than it has bytes.
OPCODES = frozenset(("PROTO", "FRAME", "STOP", "MARK", "EMPTY_LIST", "LIST", "APPEND", "APPENDS", "MEMOIZE")) | {
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET"),
}


class _PlainUnpickler(pickle.Unpickler):
    """Unpickler of lists and strings. It refuses every class, and with it all code, before looking it up."""

    def find_class(self, module: str, name: str) -> Never:
        raise pickle.UnpicklingError(f"it needs the class {module}.{name}, and a list of names needs none")


def find_cub(tree: FileSource, named: Sequence[str] | None) -> Sequence[str]:
    return [name for name in SIDES if named is None and tree.is_file(name)]


def read_cub(source: Source) -> Reading:
    """Read the pictures that the pickles list; those of test are held out."""
    folder = next((folder for folder in IMAGE_FOLDERS if any(name.startswith(f"{folder}/") for name in source.tree.names)), "")
    pictures = source.tree.below(folder)
    texts = source.tree.below("text")
    reading = Reading(notes=[f"captions from text, sides from {' and '.join(source.entries)}"])
    gallery = Gallery(pictures, reading, source.bad)
    for entry in source.entries:
        for number, stem in enumerate(_names(source.tree, entry, source.bad)):
            where = f"{entry}:{number}"
            picture = gallery.find({"file_name": f"{stem}.jpg"}, where)
            if picture is None:
                continue
            try:
                content = texts.read(f"{stem}.txt", MAX_CAPTION_FILE)
            except Rejected as error:
                source.bad.add("image without caption", where, f"{printable(stem)}.txt {error.why}")
                continue
            captions = captions_of_text(content, where, source.settings, source.bad)
            gallery.keep(picture, captions, where, SIDES[entry])
    return reading.without_single_side()


def _check_opcodes(content: bytes) -> None:
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name not in OPCODES:
            raise pickle.UnpicklingError(f"it holds the opcode {opcode.name} ({argument}), and a list of names needs none")
        # the unpickler allocates room for every number below this one
        if opcode.name.endswith("PUT") and isinstance(argument, int) and argument > len(content):
            raise pickle.UnpicklingError(f"it numbers an object {argument}")


def _names(tree: FileSource, entry: str, bad: BadItems) -> list[str]:
    """Return the strings in a pickled list; raises `GanT2IError` for any other pickle."""
    try:
        content = tree.read(entry, MAX_PICKLE)
        if len(content) > MAX_PICKLE:
            raise Rejected("", f"has more than {MAX_PICKLE} bytes")
        _check_opcodes(content)
        names = _PlainUnpickler(io.BytesIO(content), encoding="latin-1").load()  # Python 2 wrote the real ones
    except Rejected as error:
        raise GanT2IError(f"{entry} {error.why}") from error
    # a broken pickle raises nearly any class
    except Exception as error:
        raise GanT2IError(f"{entry} is refused: {' '.join(str(error).split())}") from error
    if not isinstance(names, list):
        raise GanT2IError(f"{entry} must hold a list of names, not {type(names).__name__}")
    for number, name in enumerate(names):
        if not isinstance(name, str):
            bad.add("row without file_name", f"{entry}:{number}", f"the name is {type(name).__name__}, not text")
    return [name for name in names if isinstance(name, str)]
