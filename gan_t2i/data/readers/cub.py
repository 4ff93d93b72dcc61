"""CUB-200-2011 in the layout of AttnGAN: train/filenames.pickle and test/filenames.pickle list stems such as
001.Black_footed_Albatross/Black_Footed_Albatross_0001; text/STEM.txt holds ten captions, CUB_200_2011/images/STEM.jpg is the picture."""

import pickletools
from collections.abc import Sequence

from gan_t2i.core.errors import GanT2IError
from gan_t2i.data.readers.base import MAX_CAPTION_FILE, Gallery, Reading, Source, captions_of_text, printable
from gan_t2i.data.readers.tree import FileSource, Rejected
from gan_t2i.data.records import HELDOUT, TRAIN, BadItems

SIDES = {"train/filenames.pickle": TRAIN, "test/filenames.pickle": HELDOUT}
IMAGE_FOLDERS = ("CUB_200_2011/images", "images")
MAX_PICKLE = 1 << 24  # bytes; the real ones have 500 kB
STRINGS = frozenset(("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"))


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


def pickled_list(content: bytes) -> list[object]:
    """Return the list of strings in a pickle of any protocol, read from its opcodes alone: nothing is unpickled, so nothing can run.

    Raises `ValueError` for an opcode that such a list does not need, and whatever else a broken pickle causes.
    """
    stack: list[object] = []
    marks: list[int] = []  # where the items of the open lists begin on the stack
    memo: dict[object, object] = {}
    for opcode, argument, _ in pickletools.genops(content):
        name = opcode.name
        if name in STRINGS:
            stack.append(argument)
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "LIST":
            stack.append(_cut(stack, marks.pop()))
        elif name == "APPEND":
            item = stack.pop()
            _list_on(stack).append(item)
        elif name == "APPENDS":
            items = _cut(stack, marks.pop())
            _list_on(stack).extend(items)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise ValueError(f"it holds the opcode {name} ({argument}), and a list of names needs none")
    return _list_on(stack)


def _cut(stack: list[object], start: int) -> list[object]:
    """Take the items from `start` on off the stack."""
    items = stack[start:]
    del stack[start:]
    return items


def _list_on(stack: list[object]) -> list[object]:
    if not isinstance(stack[-1], list):
        raise ValueError(f"it must hold a list of names, not {type(stack[-1]).__name__}")
    return stack[-1]


def _names(tree: FileSource, entry: str, bad: BadItems) -> list[str]:
    """Return the strings in a pickled list; raises `GanT2IError` for any other pickle."""
    try:
        content = tree.read(entry, MAX_PICKLE)
        if len(content) > MAX_PICKLE:
            raise Rejected("", f"has more than {MAX_PICKLE} bytes")
        names = pickled_list(content)
    except Rejected as error:
        raise GanT2IError(f"{entry} {error.why}") from error
    # a broken pickle raises nearly any class
    except Exception as error:
        raise GanT2IError(f"{entry} is refused: {' '.join(str(error).split())}") from error
    for number, name in enumerate(names):
        if not isinstance(name, str):
            bad.add("row without file_name", f"{entry}:{number}", f"the name is {type(name).__name__}, not text")
    return [name for name in names if isinstance(name, str)]
