"""The training state on disk: with a snapshot's worth of G_ema it continues a run bit for bit."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gan_t2i.checkpoint import load_weights, read_metadata, read_tensors, write_tensors
from gan_t2i.core.errors import GanT2IError
from gan_t2i.training.networks import Networks

FORMAT_VERSION = 2
DATA_SET = "data set"
MOMENTS = {"step", "exp_avg", "exp_avg_sq"}  # of Adam, for each parameter
CHANGED_HINT = ", or go on with the new one with --changed-data"


@dataclass(frozen=True)
class Progress:
    """Position of a run."""

    nimg: int = 0
    rollbacks: int = 0  # how many there were, which decides the learning rates
    suspect_since: dict[str, int] = field(default_factory=dict)  # metric that the monitor suspects -> nimg since when


def save_state(path: Path, networks: Networks, progress: Progress, fingerprints: Mapping[str, str]) -> None:
    """Write G, D, G_ema, the frozen auxiliary networks, both optimizers and `progress`, whole or not at all.

    `fingerprints` holds what must be unchanged when the run resumes, e.g. {"data set": its fingerprint}.
    """
    tensors: dict[str, Tensor] = {}
    for name, module in _modules(networks).items():
        for key, tensor in module.state_dict().items():
            tensors[f"{name}/{key}"] = tensor
    for name in ("g_optimizer", "d_optimizer"):
        for index, moments in getattr(networks, name).state_dict()["state"].items():
            for key, tensor in moments.items():
                tensors[f"{name}/{index}/{key}"] = tensor
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
        _load_optimizer(getattr(networks, name), below(tensors, name), f"{path} ({name})")
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
    return Progress(metadata["nimg"], rollbacks, suspect_since)


def below(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return the tensors of the network or optimizer `name` in a state, by their own names."""
    prefix = name + "/"
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], where: str) -> None:
    """Adam's moments; raises `GanT2IError` naming the first that has no parameter, another shape, or numbers that are not finite."""
    parameters = optimizer.param_groups[0]["params"]
    moments: dict[int, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition("/")
        shape = _moment_shape(parameters, index, name)
        if shape is None or tensor.shape != shape or tensor.dtype != torch.float32 or not tensor.isfinite().all():
            raise GanT2IError(f"{where}: tensor {key} is no moment of its network's parameters; start again with --resume never")
        parameter = parameters[int(index)]
        # Fused Adam walks a parameter and its moments side by side in memory, so all must be laid out alike (channels_last or not).
        moment = torch.empty_like(parameter).copy_(tensor) if name != "step" else tensor
        moments.setdefault(int(index), {})[name] = moment
    if any(moment.keys() != MOMENTS for moment in moments.values()):
        raise GanT2IError(f"{where} lacks moments of a parameter; start again with --resume never")
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


def _moment_shape(parameters: list[Tensor], index: str, name: str) -> torch.Size | None:
    """The shape that Adam's number of steps or average must have, None for a name that it does not know."""
    if name not in MOMENTS or not index.isdecimal() or int(index) >= len(parameters):
        return None
    return torch.Size() if name == "step" else parameters[int(index)].shape
