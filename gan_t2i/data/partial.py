"""Resume an interrupted pack from the pictures that it left beside its destination."""

import contextlib
import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

STATE = "progress.json"


@dataclass
class Progress:
    """Progress of decoding a source: its first `done` records are decoded, and their pictures written unless faulty."""

    key: str  # of the source's state and of all settings; another key cannot be resumed
    done: int = 0
    faults: dict[int, tuple[str, str]] = field(default_factory=dict)  # number of the record -> (kind, why)
    transparent: int = 0  # pictures that had transparent pixels

    @property
    def kept(self) -> int:
        """Number of pictures written."""
        return self.done - len(self.faults)


def resume(destination: Path, images: Path, key: str, picture_bytes: int) -> Progress:
    """Return the progress saved for `destination` under `key`, its pictures moved to `images`; without any, a new one and an empty file."""
    claimed = images.parent / "claimed"
    progress = Progress(key)
    # only one of two processes can rename it, and the other starts anew; a damaged file is not a reason to stop
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        _folder_for(destination).rename(claimed)
        state = json.loads((claimed / STATE).read_text(encoding="utf-8"))
        faults = {int(number): (kind, why) for number, (kind, why) in state["faults"].items()}
        found = Progress(state["key"], state["done"], faults, state["transparent"])
        if found.key == key and (claimed / images.name).stat().st_size >= found.kept * picture_bytes:
            (claimed / images.name).rename(images)
            progress = found
    shutil.rmtree(claimed, ignore_errors=True)
    # part of a picture may follow the last whole one
    with open(images, "ab") as file:
        file.truncate(progress.kept * picture_bytes)
    return progress


def save(destination: Path, images: Path, progress: Progress) -> None:
    """Put `images` and `progress` where `resume` finds them."""
    folder = images.parent / "saved"
    folder.mkdir()
    images.rename(folder / images.name)
    (folder / STATE).write_text(json.dumps(asdict(progress)), encoding="utf-8")
    with contextlib.suppress(OSError):  # another process has saved its own
        folder.rename(_folder_for(destination))


def _folder_for(destination: Path) -> Path:
    return destination.with_name(f".{destination.name}.partial")
