"""The training state on disk: with a snapshot's worth of G_ema it continues a run bit for bit."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gan_t2i.checkpoint import load_weights, read_metadata, read_tensors, write_tensors
from gan_t2i.errors import GanT2IError
from gan_t2i.training.step import Networks

FORMAT_VERSION = 1


def save_state(path: Path, networks: Networks, nimg: int, seen: Mapping[str, str]) -> None:
    """Write G, D, G_ema and both optimizers after `nimg` pictures, whole or not at all.

    `seen`: what a run must find unchanged to go on, e.g. {"data set": its fingerprint}.
    """
    tensors: dict[str, Tensor] = {}
    for name in ("G", "D", "G_ema"):
        for key, tensor in getattr(networks, name).state_dict().items():
            tensors[f"{name}/{key}"] = tensor
    for name in ("g_optimizer", "d_optimizer"):
        for index, moments in getattr(networks, name).state_dict()["state"].items():
            for key, tensor in moments.items():
                tensors[f"{name}/{index}/{key}"] = tensor
    metadata = {"type": "training state", "format_version": FORMAT_VERSION, "nimg": nimg, "seen": dict(seen)}
    write_tensors(path, tensors, metadata)


def read_nimg(path: Path) -> int:
    """Pictures shown when the state at `path` was written; raises `GanT2IError` where it is none."""
    return int(_checked(path, read_metadata(path))["nimg"])


def load_state(path: Path, networks: Networks, seen: Mapping[str, str]) -> int:
    """Put the state at `path` into `networks` and return its nimg; raises `GanT2IError` where it does not fit."""
    tensors, metadata = read_tensors(path)
    _checked(path, metadata)
    for name, fingerprint in seen.items():
        if metadata["seen"].get(name) != fingerprint:
            raise GanT2IError(
                f"the {name} is not the one that {path.parent} was trained with (fingerprint {fingerprint[:12]}, "
                f"not {str(metadata['seen'].get(name))[:12]}): restore it, or start a new run with --resume never"
            )
    for name in ("G", "D", "G_ema"):
        load_weights(getattr(networks, name), _below(tensors, name), f"{path} ({name})")
    for name in ("g_optimizer", "d_optimizer"):
        _load_optimizer(getattr(networks, name), _below(tensors, name))
    return int(metadata["nimg"])


def _checked(path: Path, metadata: dict[str, Any]) -> dict[str, Any]:
    if metadata.get("type") != "training state" or metadata.get("format_version") != FORMAT_VERSION:
        raise GanT2IError(f"{path} is no training state of format version {FORMAT_VERSION}; start again with --resume never")
    if type(metadata.get("nimg")) is not int or not isinstance(metadata.get("seen"), dict):
        raise GanT2IError(f"{path} is damaged: its metadata lack nimg or seen; start again with --resume never")
    return metadata


def _below(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    prefix = name + "/"
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = optimizer.param_groups[0]["params"]
    moments: dict[int, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        index, name = key.split("/")
        parameter = parameters[int(index)]
        # Fused Adam walks a parameter and its moments side by side in memory, so all must be laid out alike (channels_last or not).
        moment = torch.empty_like(parameter).copy_(tensor) if tensor.shape == parameter.shape else tensor
        moments.setdefault(int(index), {})[name] = moment
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
