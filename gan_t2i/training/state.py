"""The training state on disk: with a snapshot's worth of G_ema it continues a run bit for bit."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gan_t2i.checkpoint import load_weights, read_tensors, write_tensors
from gan_t2i.errors import GanT2IError
from gan_t2i.training.step import Networks

FORMAT_VERSION = 1


def save_state(path: Path, networks: Networks, nimg: int, data_fingerprint: str) -> None:
    """Write G, D, G_ema and both optimizers after `nimg` pictures, whole or not at all."""
    tensors: dict[str, Tensor] = {}
    for name in ("G", "D", "G_ema"):
        for key, tensor in getattr(networks, name).state_dict().items():
            tensors[f"{name}/{key}"] = tensor
    for name in ("g_optimizer", "d_optimizer"):
        for index, moments in getattr(networks, name).state_dict()["state"].items():
            for key, tensor in moments.items():
                tensors[f"{name}/{index}/{key}"] = tensor
    metadata = {"type": "training state", "format_version": FORMAT_VERSION, "nimg": nimg, "data_fingerprint": data_fingerprint}
    write_tensors(path, tensors, metadata)


def load_state(path: Path, networks: Networks, data_fingerprint: str) -> int:
    """Put the state at `path` into `networks` and return its nimg; raises `GanT2IError` where it does not fit."""
    tensors, metadata = read_tensors(path)
    if metadata.get("type") != "training state" or metadata.get("format_version") != FORMAT_VERSION:
        raise GanT2IError(f"{path} is no training state of format version {FORMAT_VERSION}; start again with --resume never")
    nimg, trained_on = metadata.get("nimg"), metadata.get("data_fingerprint")
    if type(nimg) is not int or type(trained_on) is not str:
        raise GanT2IError(f"{path} is damaged: its metadata lack nimg or data_fingerprint; start again with --resume never")
    if trained_on != data_fingerprint:
        raise GanT2IError(
            f"the data set is not the one that {path.parent} was trained on (fingerprint {data_fingerprint[:12]}, "
            f"not {trained_on[:12]}): restore it, or start a new run with --resume never"
        )
    for name in ("G", "D", "G_ema"):
        load_weights(getattr(networks, name), _below(tensors, name), f"{path} ({name})")
    for name in ("g_optimizer", "d_optimizer"):
        _load_optimizer(getattr(networks, name), _below(tensors, name))
    return nimg


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
