"""What a pack that is stopped leaves beside its destination, so that the next one goes on from there."""

import contextlib
import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

STATE = "stopped.json"


@dataclass
class Progress:
    """How far the pictures of a source are decoded. The file of pictures holds the `done` first ones, without the faulty."""

    key: str  # of the source as it is, and of all settings: under another key nothing can be gone on with
    done: int = 0
    faults: dict[int, tuple[str, str]] = field(default_factory=dict)  # number of the record -> (kind, why)

    @property
    def kept(self) -> int:
        """Pictures in the file."""
        return self.done - len(self.faults)


def take(destination: Path, images: Path, key: str, picture_bytes: int) -> Progress:
    """What was left of `key` at `destination`, its pictures moved to `images`; without any, a beginning and an empty file."""
    claimed = images.parent / "claimed"
    progress = Progress(key)
    # Of two processes only one can rename it; the other one starts anew.
    with contextlib.suppress(OSError):
        _place(destination).rename(claimed)
        # A file that is damaged is no reason to stop.
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            state = json.loads((claimed / STATE).read_text(encoding="utf-8"))
            faults = {int(number): (kind, why) for number, (kind, why) in state["faults"].items()}
            found = Progress(state["key"], state["done"], faults)
            if found.key == key and (claimed / images.name).stat().st_size >= found.kept * picture_bytes:
                (claimed / images.name).rename(images)
                progress = found
    shutil.rmtree(claimed, ignore_errors=True)
    # Behind the last whole picture there may be a part of one.
    with open(images, "ab") as file:
        file.truncate(progress.kept * picture_bytes)
    return progress


def leave(destination: Path, images: Path, progress: Progress) -> None:
    """Put `images` and `progress` where `take` finds them."""
    folder = images.parent / "left"
    folder.mkdir()
    images.rename(folder / images.name)
    (folder / STATE).write_text(json.dumps(asdict(progress)), encoding="utf-8")
    with contextlib.suppress(OSError):  # another process has left its own
        folder.rename(_place(destination))


def _place(destination: Path) -> Path:
    return destination.with_name(f".{destination.name}.stopped")
