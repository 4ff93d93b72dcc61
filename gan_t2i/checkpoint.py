"""Files of a run: snapshots, which anyone may load, and the file format that they share with the training state.

Both are one safetensors file with JSON in its header; nothing is ever unpickled. A snapshot holds the EMA weights of the generator with its
text head, how to build it, and which text encoder it was trained with. The training state (`training/state.py`) holds everything else.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
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
from gan_t2i.core.runtime import seeded_weights
from gan_t2i.core.words import split_words
from gan_t2i.models.base import Generator
from gan_t2i.models.latent_generator import LatentGenerator
from gan_t2i.registry import build

FORMAT_VERSION = 3
_METADATA_KEY = "gan_t2i"
ARTICLES = ("a", "an", "the")
MOMENTS = {"step", "exp_avg", "exp_avg_sq"}  # of Adam, for each parameter


@dataclass(frozen=True)
class BuildSpec:
    """How to rebuild an instance of a registered class."""

    kind: str
    name: str
    params: dict[str, Any]
    interface: dict[str, Any]

    def build(self) -> Any:
        """Build it; raises `UsageError` if its name or a setting is unknown."""
        return build(self.kind, self.name, self.params, **self.interface)


@dataclass(frozen=True)
class EncoderRecord:
    """The frozen text encoder that a generator was trained with. The snapshot holds the hash of its weights, not the weights."""

    built: BuildSpec
    id: str
    revision: str | None
    weights_hash: str


@dataclass(frozen=True)
class ModelCard:
    """A published snapshot's account of itself. Snapshots of a run have none, since its words come from the captions, but for built-in sets."""

    text: str
    """Data, licences, figures and limits, in Markdown."""
    words: tuple[str, ...] = ()
    """Words of the training captions, in lower case."""
    styles: tuple[str, ...] = ()
    """Words for styles, as in "a red apple, noto style"."""
    example: str = ""
    """A prompt to begin with."""

    def unknown_words(self, prompt: str) -> list[str]:
        """Return the words of a prompt that occur in no training caption, in lower case."""
        return [word for word in dict.fromkeys(split_words(prompt)) if word not in self._known]

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset((*ARTICLES, *self.words))


@dataclass(frozen=True)
class SnapshotInfo:
    """Everything in a snapshot but the weights."""

    generator: BuildSpec
    encoder: EncoderRecord
    nimg: int
    data_fingerprint: str
    data_name: str
    autoencoder: BuildSpec | None = None
    """The autoencoder whose latents the generator draws; None for pixels."""
    card: ModelCard | None = None
    format_version: int = FORMAT_VERSION
    versions: dict[str, str] = field(default_factory=lambda: {"gan_t2i": __version__, "torch": torch.__version__})

    @property
    def resolution(self) -> int:
        """Side of the images in pixels."""
        return int((self.autoencoder or self.generator).interface["resolution"])

    @property
    def has_alpha(self) -> bool:
        """True if the images have an alpha channel; the earliest snapshots have no such entry."""
        return (self.autoencoder or self.generator).interface.get("channels", 3) == 4


_INFO = pydantic.TypeAdapter(SnapshotInfo)


def save_snapshot(path: Path, generator: nn.Module, info: SnapshotInfo, dtype: torch.dtype = torch.float32) -> None:
    """Write the weights of `generator`, rounded to `dtype`, and `info` to `path`, atomically; raises `GanT2IError` if that fails."""
    weights = {name: tensor.to(dtype) for name, tensor in generator.state_dict().items()}
    write_tensors(path, weights, {"type": "snapshot", **asdict(info)})


def load_snapshot(path: Path) -> tuple[Generator, SnapshotInfo]:
    """Return the generator of images, frozen and in evaluation mode on the CPU, and its info; raises `GanT2IError` with one sentence."""
    info = read_info(path)
    try:
        with seeded_weights(0):  # they are replaced, and draw no random numbers of the caller's
            generator: Generator = info.generator.build()
            if info.autoencoder is not None:
                generator = LatentGenerator(generator, info.autoencoder.build())
    except (TypeError, ValueError, RuntimeError) as error:  # a UsageError, or a constructor that refuses impossible sizes
        reason = " ".join(str(error).split())
        raise GanT2IError(f"snapshot {path} cannot be built by gan_t2i {__version__}: {reason}") from error
    tensors, metadata = read_tensors(path)
    if metadata["format_version"] == 1:
        tensors = {_renamed(name): tensor for name, tensor in tensors.items()}
    # a snapshot may be stored in bfloat16; its network computes in float32 either way
    load_weights(generator, {name: x.float() if x.dtype == torch.bfloat16 else x for name, x in tensors.items()}, str(path))
    generator.eval().requires_grad_(False)
    return generator, info


def read_info(path: Path) -> SnapshotInfo:
    """Return the info of the snapshot at `path`; raises `GanT2IError` if the file is not a snapshot, is damaged or has another format."""
    metadata = read_metadata(path)
    version = metadata.get("format_version")
    if metadata.get("type") != "snapshot":
        raise GanT2IError(f"{path} is not a snapshot of gan_t2i but its {metadata.get('type')}; name a file under snapshots/")
    if version == 1:
        metadata = _upgraded(path, metadata)
    elif version == 2:  # the same without autoencoders
        metadata = {**metadata, "format_version": FORMAT_VERSION, "autoencoder": None}
    elif version != FORMAT_VERSION:
        versions = metadata.get("versions")
        writer = versions.get("gan_t2i", "unknown") if isinstance(versions, dict) else "unknown"
        raise GanT2IError(
            f"snapshot {path} has format version {version}; gan_t2i {__version__} reads {FORMAT_VERSION}: "
            f"install the version that wrote it ({writer}), or train again"
        )
    if "autoencoder" not in metadata:  # it may be null, for pixels
        raise GanT2IError(f"snapshot {path} is damaged: its metadata lack autoencoder")
    try:
        info = _INFO.validate_python({"versions": None, **metadata})  # without them the writer is unknown: the defaults are this version's
    except pydantic.ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(map(str, fault["loc"]))
        raise GanT2IError(f"snapshot {path} is damaged: {key} in its metadata: {fault['msg']}") from error
    for kind, spec in (("generator", info.generator), ("autoencoder", info.autoencoder)):
        if spec and (spec.kind != kind or not all(type(size) is int and size > 0 for size in spec.interface.values())):
            raise GanT2IError(f"snapshot {path} is damaged: its metadata do not describe its {kind}")
    return info


def _upgraded(path: Path, metadata: dict[str, Any]) -> dict[str, Any]:
    """Convert metadata of format version 1, in which the layout predictor was called placer, to today's; raises `GanT2IError` if the
    generator has a part that is gone."""
    try:
        generator = metadata["generator"]
        params = {_renamed(name): value for name, value in generator["params"].items()}
        text_head = dict(params.get("text_head", {}))
    except (KeyError, TypeError, AttributeError, ValueError):
        return metadata  # damaged: the caller's checks find where
    if text_head.pop("whiten", False):
        raise GanT2IError(f"snapshot {path} has whitened text heads, which gan_t2i {__version__} no longer has: use the version that wrote it")
    return {
        **metadata,
        "format_version": FORMAT_VERSION,
        "autoencoder": None,
        "generator": {**generator, "params": {**params, "text_head": text_head}},
    }


def _renamed(name: str) -> str:
    """Return the current name of a setting or tensor of format version 1."""
    return re.sub(r"^placer\b", "layout", name).replace(".local_style.trust", ".local_style.layout_gain")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write one safetensors file with `metadata` as JSON in its header, atomically; raises `GanT2IError` if that fails."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        with atomic_file(path) as temporary:
            save_file(on_cpu, temporary, metadata={_METADATA_KEY: json.dumps(metadata, ensure_ascii=False)})
    except (OSError, safetensors.SafetensorError) as error:
        raise GanT2IError(f"cannot write {path}: {error}") from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the metadata that `write_tensors` wrote; raises `GanT2IError` with one sentence."""
    metadata = read_metadata(path)
    with safetensors.safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 (safe_open is not a mapping)


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata alone that `write_tensors` wrote; raises `UsageError` if there is no file, `GanT2IError` if it is another kind."""
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
    """Copy `tensors` into `module`; raises `GanT2IError` that names the first missing, unknown, misshapen, mistyped or non-finite one."""
    expected = module.state_dict()
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors:
            raise GanT2IError(f"{where} lacks the tensor {name}")
        if name not in expected:
            raise GanT2IError(f"{where} holds a tensor {name} that its network does not have")
        if tensors[name].shape != expected[name].shape:
            raise GanT2IError(f"{where}: tensor {name} has shape {list(tensors[name].shape)}, its network needs {list(expected[name].shape)}")
        if tensors[name].dtype != expected[name].dtype:
            raise GanT2IError(f"{where}: tensor {name} holds {tensors[name].dtype}, its network needs {expected[name].dtype}")
        if not tensors[name].isfinite().all():
            raise GanT2IError(f"{where}: tensor {name} holds numbers that are not finite")
    module.load_state_dict(tensors)


def below(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return the tensors of the network or optimizer `name` in a state, by their own names."""
    prefix = name + "/"
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return Adam's moments as tensors for a file, by index of the parameter and name."""
    return {f"{index}/{key}": tensor for index, moments in optimizer.state_dict()["state"].items() for key, tensor in moments.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load what `optimizer_tensors` gave; raises `GanT2IError` naming the first that has no parameter, another shape, or numbers that are not
    finite."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments: dict[int, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition("/")
        shape = _moment_shape(parameters, index, name)
        if shape is None or tensor.shape != shape or tensor.dtype != torch.float32 or not tensor.isfinite().all():
            raise GanT2IError(f"{where}: tensor {key} is no moment of its network's parameters")
        parameter = parameters[int(index)]
        # Fused Adam walks a parameter and its moments side by side in memory, so all must be laid out alike (channels_last or not).
        moment = torch.empty_like(parameter).copy_(tensor) if name != "step" else tensor
        moments.setdefault(int(index), {})[name] = moment
    if any(moment.keys() != MOMENTS for moment in moments.values()):
        raise GanT2IError(f"{where} lacks moments of a parameter")
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


def _moment_shape(parameters: list[Tensor], index: str, name: str) -> torch.Size | None:
    """The shape that Adam's number of steps or average must have, None for a name that it does not know."""
    if name not in MOMENTS or not index.isdecimal() or int(index) >= len(parameters):
        return None
    return torch.Size() if name == "step" else parameters[int(index)].shape
