"""What a run leaves on disk: snapshots that anyone may load, and the training state that continues a run.

Both are one safetensors file with JSON beside the tensors; nothing is ever unpickled. A snapshot holds the EMA weights of the generator
with its text head, and says how to build it and which text encoder it listens to. The state holds everything else.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pydantic
import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from gan_t2i import __version__
from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.core.files import atomic_file
from gan_t2i.models.base import Generator
from gan_t2i.registry import build

FORMAT_VERSION = 2
_METADATA_KEY = "gan_t2i"


@dataclass(frozen=True)
class BuildSpec:
    """How to build a registered class again."""

    kind: str
    name: str
    params: dict[str, Any]
    interface: dict[str, Any]

    def build(self) -> Any:
        return build(self.kind, self.name, self.params, **self.interface)


@dataclass(frozen=True)
class EncoderRecord:
    """The frozen text encoder that a generator was trained with; its weights are not in the snapshot, their hash is."""

    built: BuildSpec
    id: str
    revision: str | None
    weights_hash: str


@dataclass(frozen=True)
class SnapshotInfo:
    """All that a snapshot says of itself, but for the weights."""

    generator: BuildSpec
    encoder: EncoderRecord
    nimg: int
    data_fingerprint: str
    data_name: str
    format_version: int = FORMAT_VERSION
    versions: dict[str, str] = field(default_factory=lambda: {"gan_t2i": __version__, "torch": torch.__version__})

    @property
    def resolution(self) -> int:
        return int(self.generator.interface["resolution"])

    @property
    def draws_alpha(self) -> bool:
        """Whether pictures have transparency; snapshots from before there was any do not say."""
        return self.generator.interface.get("channels", 3) == 4


_INFO = pydantic.TypeAdapter(SnapshotInfo)


def save_snapshot(path: Path, generator: nn.Module, info: SnapshotInfo, dtype: torch.dtype = torch.float32) -> None:
    """Write the weights of `generator`, rounded to `dtype`, and `info` to `path`, whole or not at all."""
    weights = {name: tensor.to(dtype) for name, tensor in generator.state_dict().items()}
    write_tensors(path, weights, {"type": "snapshot", **asdict(info)})


def load_snapshot(path: Path) -> tuple[Generator, SnapshotInfo]:
    """The generator in evaluation mode on the CPU, and what the snapshot says; raises `GanT2IError` with one sentence."""
    info = read_info(path)
    try:
        generator: Generator = info.generator.build()
    except (TypeError, ValueError, RuntimeError) as error:  # a UsageError, or what a constructor says to sizes that cannot be
        reason = " ".join(str(error).split())
        raise GanT2IError(f"snapshot {path} cannot be built by gan_t2i {__version__}: {reason}") from error
    tensors, metadata = read_tensors(path)
    if metadata["format_version"] == 1:
        tensors = {_renamed(name): tensor for name, tensor in tensors.items()}
    # a snapshot may be stored at half its size; its network works in float32 either way
    load_weights(generator, {name: x.float() if x.dtype == torch.bfloat16 else x for name, x in tensors.items()}, str(path))
    generator.eval().requires_grad_(False)
    return generator, info


def read_info(path: Path) -> SnapshotInfo:
    """What the snapshot at `path` says of itself; raises `GanT2IError` where it is none, or of another format."""
    metadata = read_metadata(path)
    version = metadata.get("format_version")
    if metadata.get("type") != "snapshot":
        raise GanT2IError(f"{path} is not a snapshot of gan_t2i but its {metadata.get('type')}; name a file under snapshots/")
    if version == 1:
        metadata = _upgraded(path, metadata)
    elif version != FORMAT_VERSION:
        versions = metadata.get("versions")
        writer = versions.get("gan_t2i", "unknown") if isinstance(versions, dict) else "unknown"
        raise GanT2IError(
            f"snapshot {path} has format version {version}; gan_t2i {__version__} reads {FORMAT_VERSION}: "
            f"install the version that wrote it ({writer}), or train again"
        )
    try:
        info = _INFO.validate_python({"versions": None, **metadata})  # where they are missing, ours are not the ones that wrote it
    except pydantic.ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"]))
        raise GanT2IError(f"snapshot {path} is damaged: {place} in its metadata: {fault['msg']}") from error
    if info.generator.kind != "generator" or not all(type(size) is int and size > 0 for size in info.generator.interface.values()):
        raise GanT2IError(f"snapshot {path} is damaged: its metadata describe no generator")
    return info


def _upgraded(path: Path, metadata: dict[str, Any]) -> dict[str, Any]:
    """Metadata of format version 1, in which the layout predictor was called placer, as version 2 has it; raises `GanT2IError` where the
    generator has a part that version 2 no longer knows."""
    try:
        generator = metadata["generator"]
        params = {_renamed(name): value for name, value in generator["params"].items()}
        text_head = dict(params.get("text_head", {}))
    except (KeyError, TypeError, AttributeError, ValueError):
        return metadata  # damaged: the checks that follow say where
    if text_head.pop("whiten", False):
        raise GanT2IError(f"snapshot {path} has whitened text heads, which gan_t2i {__version__} no longer has: use the version that wrote it")
    return {**metadata, "format_version": FORMAT_VERSION, "generator": {**generator, "params": {**params, "text_head": text_head}}}


def _renamed(name: str) -> str:
    """A parameter or tensor of format version 1 under its name of today."""
    return re.sub(r"^placer\b", "layout", name).replace(".local_style.trust", ".local_style.layout_gain")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """One safetensors file with `metadata` as JSON in its header, written to a temporary name, flushed and renamed."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        with atomic_file(path) as temporary:
            save_file(on_cpu, temporary, metadata={_METADATA_KEY: json.dumps(metadata, ensure_ascii=False)})
    except (OSError, safetensors.SafetensorError) as error:
        raise GanT2IError(f"cannot write {path}: {error}") from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the metadata that `write_tensors` wrote; raises `GanT2IError` with one sentence."""
    metadata = read_metadata(path)
    with safetensors.safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 (safe_open is no mapping)


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata alone that `write_tensors` wrote; raises `GanT2IError` with one sentence."""
    if not path.is_file():
        raise UsageError(f"no such file: {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get(_METADATA_KEY, "null"))
    except (OSError, safetensors.SafetensorError, json.JSONDecodeError) as error:
        raise GanT2IError(f"{path} is not a safetensors file, or is damaged ({error}); pickled checkpoints are never loaded") from error
    if not isinstance(metadata, dict):
        raise GanT2IError(f"{path} is a safetensors file, but not one that gan_t2i wrote: it has no {_METADATA_KEY} metadata")
    return metadata


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy `tensors` into `module`; raises `GanT2IError` naming the first that is missing, unknown, of another shape or type, or not finite."""
    wanted = module.state_dict()
    for name in sorted(wanted.keys() | tensors.keys()):
        if name not in tensors:
            raise GanT2IError(f"{where} lacks the tensor {name}")
        if name not in wanted:
            raise GanT2IError(f"{where} holds a tensor {name} that its network does not have")
        if tensors[name].shape != wanted[name].shape:
            raise GanT2IError(f"{where}: tensor {name} has shape {list(tensors[name].shape)}, its network needs {list(wanted[name].shape)}")
        if tensors[name].dtype != wanted[name].dtype:
            raise GanT2IError(f"{where}: tensor {name} holds {tensors[name].dtype}, its network needs {wanted[name].dtype}")
        if not tensors[name].isfinite().all():
            raise GanT2IError(f"{where}: tensor {name} holds numbers that are not finite")
    module.load_state_dict(tensors)
