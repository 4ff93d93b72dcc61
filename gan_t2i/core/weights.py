"""Finds pretrained weights: in an installed package, in a local file or folder, in the cache of the Hugging Face hub, or on the hub.

Weights are identified by the sha256 of their bytes. No code that comes with them is imported or run.
"""

import hashlib
import importlib.metadata
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from gan_t2i.core.errors import GanT2IError
from gan_t2i.core.log import quiet

HUB_TIMEOUT = 5.0  # seconds for the first request to the hub, which is sent without retries

log = logging.getLogger(__name__)


class WeightsNotFoundError(GanT2IError):
    """Weights that are neither on this machine nor to be had from the hub."""


@dataclass(frozen=True)
class Weights:
    """A file or folder with weights, and what a snapshot or a report records about it."""

    path: Path
    sha256: str
    """Hash of the file, or of the safetensors in the folder, as `hash_weights` computes it."""
    source: str
    """Origin of the weights, as one line for people."""
    id: str = ""
    revision: str | None = None
    """Commit on the hub; None for a local file or folder."""


@dataclass(frozen=True)
class Package:
    """Weights in a Python package of an unknown publisher, accepted by their hash alone."""

    title: str
    """Name of the model, for messages."""
    name: str
    """Name of the package."""
    file: str
    """End of the name of the file that holds the weights."""
    sha256: str
    folder: bool = False
    """True if the folder of the file is loaded, and not the file alone."""
    id: str = ""
    revision: str | None = None

    def find(self) -> Weights | None:
        """The weights in the installed package, which is located without importing it; None where it is not installed.

        Raises GanT2IError where the package holds other weights.
        """
        try:
            distribution = importlib.metadata.distribution(self.name)
        except importlib.metadata.PackageNotFoundError:
            return None
        files = [Path(str(file.locate())) for file in distribution.files or [] if file.name.endswith(self.file)]
        if not files or not files[0].is_file():
            return None
        path = files[0].resolve().parent if self.folder else files[0]
        sha256, package = hash_weights(path), f"{self.name} {distribution.version}"
        if sha256 != self.sha256:
            raise GanT2IError(
                f"the installed package {package} holds weights with sha256 {sha256}, not {self.sha256}: they are not those of {self.title}; "
                f"reinstall or remove that package"
            )
        return Weights(path, sha256, f"{self.title} from the installed package {package}", self.id, self.revision)


@dataclass(frozen=True)
class Repository:
    """The needed files of a model on the Hugging Face hub."""

    name: str
    revision: str | None
    patterns: list[str]
    """Files to download."""
    complaint: Callable[[Path], str | None]
    """A folder with them -> the reason why it cannot be used, as half a sentence; None if it can."""

    def find_cached(self) -> Weights | None:
        """The weights in the hub's local cache, without a request to the hub; None where they are missing or incomplete."""
        from huggingface_hub import snapshot_download

        try:
            folder = snapshot_download(self.name, revision=self.revision, local_files_only=True, allow_patterns=self.patterns)
        except (OSError, ValueError):
            return None
        # An interrupted download leaves a folder without its weights.
        return self._weights(Path(folder), "the hub's local cache") if self.complaint(Path(folder)) is None else None

    def find(self, title: str) -> Weights:
        """The weights from the hub's local cache, else from the hub.

        Raises WeightsNotFoundError where they cannot be had, and GanT2IError where they cannot be used. `title` says in the message what they
        are ("the text encoder").
        """
        cached = self.find_cached()  # not under `quiet`, which imports transformers
        if cached is not None:
            return cached
        from huggingface_hub import HfApi, snapshot_download

        try:
            with quiet():
                # snapshot_download retries for 23 s where there is no network; this request is sent once.
                commit = HfApi().model_info(self.name, revision=self.revision, timeout=HUB_TIMEOUT).sha
                log.info(f"downloading {title} {self.name} at revision {commit} from the hub")
                folder = Path(snapshot_download(self.name, revision=commit, etag_timeout=HUB_TIMEOUT, allow_patterns=self.patterns))
        except Exception as error:
            # The hub's client has changed its HTTP library twice, so there is no narrower class that covers "no network" in all versions.
            raise WeightsNotFoundError(
                f"{title} {self.name} is neither installed nor cached, and the hub did not give it ({_reason(error)})"
            ) from error
        fault = self.complaint(folder)
        if fault is not None:
            raise GanT2IError(f"{title} {self.name} on the hub {fault}")
        return self._weights(folder, "the hub")

    def _weights(self, folder: Path, place: str) -> Weights:
        commit = folder.name  # snapshots/<commit>
        return Weights(folder, hash_weights(folder), f"{self.name} at revision {commit} from {place}", self.name, commit)


def local_weights(path: Path, title: str) -> Weights:
    """The weights in a local file or folder, called `title` in messages."""
    return Weights(path, hash_weights(path), f"{title} from the local {'folder' if path.is_dir() else 'file'} {path}", title)


def check_hash(found: Weights, sha256: str) -> None:
    """Raises GanT2IError where `found` has another hash."""
    if found.sha256 != sha256:
        raise GanT2IError(f"{found.source} has sha256 {found.sha256}, not {sha256}: delete that copy and try again")


def hash_weights(path: Path) -> str:
    """sha256 of a file; of a folder, that of the one safetensors file in it or in its subfolders, or of the names and hashes of several."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = sorted([*path.glob("*.safetensors"), *path.glob("*/*.safetensors")])
    hashes = [(file.relative_to(path).as_posix(), hash_weights(file)) for file in files]
    return hashes[0][1] if len(hashes) == 1 else hashlib.sha256(json.dumps(hashes).encode()).hexdigest()


def hash_state(module: nn.Module) -> str:
    """Return the sha256 of the names and values of a module's tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def load_tensors(found: Weights) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a pickle that holds nothing else; raises GanT2IError where the file cannot be read."""
    try:
        if found.path.suffix == ".safetensors":
            return safetensors.torch.load_file(found.path)
        tensors = torch.load(found.path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        raise GanT2IError(f"{found.source} cannot be read: {_reason(error)}") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise GanT2IError(f"{found.source} holds something else than a mapping of names to tensors")
    return tensors


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
