"""The training state on disk: with a snapshot's worth of G_ema it continues a run bit for bit."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from gan_t2i.checkpoint import below, load_optimizer, load_weights, optimizer_tensors, read_metadata, read_tensors, write_tensors
from gan_t2i.core.errors import GanT2IError
from gan_t2i.training.networks import Networks

FORMAT_VERSION = 2
DATA_SET = "data set"
DECODER = "decoder_training"
NOTHING: Mapping[str, Tensor] = MappingProxyType({})
CHANGED_HINT = ", or go on with the new one with --changed-data"


@dataclass(frozen=True)
class Progress:
    """Position of a run."""

    nimg: int = 0
    rollbacks: int = 0  # how many there were, which decides the learning rates
    suspect_since: dict[str, int] = field(default_factory=dict)  # metric that the monitor suspects -> nimg since when
    decoder_nimg: int = 0  # images that the decoder's fine-tuning has shown after the last step
    decoder_finished: bool = False


def save_state(
    path: Path, networks: Networks, progress: Progress, fingerprints: Mapping[str, str], decoder: Mapping[str, Tensor] = NOTHING
) -> None:
    """Write G, D, G_ema, the frozen auxiliary networks, both optimizers and `progress`, whole or not at all.

    `fingerprints` holds what must be unchanged when the run resumes, e.g. {"data set": its fingerprint}, and `decoder` the tensors of a
    fine-tuning of the decoder on its way.
    """
    tensors: dict[str, Tensor] = {}
    for name, module in _modules(networks).items():
        for key, tensor in module.state_dict().items():
            tensors[f"{name}/{key}"] = tensor
    for name in ("g_optimizer", "d_optimizer"):
        tensors |= {f"{name}/{key}": tensor for key, tensor in optimizer_tensors(getattr(networks, name)).items()}
    tensors |= {f"{DECODER}/{key}": tensor for key, tensor in decoder.items()}
    metadata = {"type": "training state", "format_version": FORMAT_VERSION, **asdict(progress), "fingerprints": dict(fingerprints)}
    write_tensors(path, tensors, {**metadata, "threads": torch.get_num_threads()})


def read_progress(path: Path) -> Progress:
    """Return where the run stood when the state at `path` was written; raises `GanT2IError` where the file is not a state."""
    return _progress(path, read_metadata(path))


def read_threads(path: Path) -> int | None:
    """Return the number of threads that the run used when the state at `path` was written; None where it is not recorded."""
    threads = read_metadata(path).get("threads")
    return threads if type(threads) is int and threads > 0 else None


def read_fingerprints(path: Path) -> dict[str, str]:
    """Return the fingerprints in the state at `path`; none where it is not one that `load_state` takes."""
    try:
        metadata = read_metadata(path)
        _progress(path, metadata)
    except GanT2IError:
        return {}
    return dict(metadata["fingerprints"])


def load_state(path: Path, networks: Networks, fingerprints: Mapping[str, str]) -> Progress:
    """Load the state at `path` into `networks` and return where it stands; raises `GanT2IError` where it does not fit, or where one of
    `fingerprints` has changed."""
    tensors, metadata = read_tensors(path)
    progress = _progress(path, metadata)
    for name, fingerprint in fingerprints.items():
        recorded = metadata["fingerprints"].get(name)
        if recorded != fingerprint:
            raise GanT2IError(
                f"the {name} is not the one that {path.parent} was trained with (fingerprint {fingerprint[:12]}, not {str(recorded)[:12]}): "
                f"restore it, or start a new run with --resume never" + CHANGED_HINT * (name == DATA_SET)
            )
    for name, module in _modules(networks).items():
        load_weights(module, below(tensors, name), f"{path} ({name})")
    for name in ("g_optimizer", "d_optimizer"):
        try:
            load_optimizer(getattr(networks, name), below(tensors, name), f"{path} ({name})")
        except GanT2IError as error:
            raise GanT2IError(f"{error}; start again with --resume never") from error
    return progress


def _modules(networks: Networks) -> dict[str, nn.Module]:
    """Return the networks that a state holds, by name."""
    return {"G": networks.G, "D": networks.D, "G_ema": networks.G_ema, "autoencoder": networks.autoencoder, **networks.auxiliary}


def _progress(path: Path, metadata: dict[str, Any]) -> Progress:
    if metadata.get("type") != "training state" or metadata.get("format_version") != FORMAT_VERSION:
        raise GanT2IError(f"{path} is no training state of format version {FORMAT_VERSION}; start again with --resume never")
    if type(metadata.get("nimg")) is not int or not isinstance(metadata.get("fingerprints"), dict):
        raise GanT2IError(f"{path} is damaged: its metadata lack nimg or fingerprints; start again with --resume never")
    rollbacks, suspect_since = metadata.get("rollbacks"), metadata.get("suspect_since")
    if type(rollbacks) is not int or not isinstance(suspect_since, dict) or not all(type(nimg) is int for nimg in suspect_since.values()):
        raise GanT2IError(f"{path} is damaged: its metadata lack rollbacks or suspect_since; start again with --resume never")
    decoder_nimg = metadata.get("decoder_nimg", 0)  # older states lack it
    if type(decoder_nimg) is not int or decoder_nimg < 0:
        raise GanT2IError(f"{path} is damaged: its decoder_nimg is no number of images; start again with --resume never")
    return Progress(metadata["nimg"], rollbacks, suspect_since, decoder_nimg, metadata.get("decoder_finished") is True)
