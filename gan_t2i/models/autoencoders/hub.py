"""Autoencoder `hub`: a pretrained one of the library diffusers (AutoencoderKL, AutoencoderTiny, AutoencoderDC), frozen, safetensors alone.

N batch, C image channels, K latent channels. The class of the network stands in the model's ``config.json``; no code comes with the weights.
"""

import importlib.util
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from gan_t2i.core.config import StrictConfig
from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.core.log import quiet
from gan_t2i.core.weights import Repository, Weights, WeightsNotFoundError, load_tensors, local_weights
from gan_t2i.models.autoencoders.base import LatentAutoencoder
from gan_t2i.registry import register

EXTRA = 'pip install "gan-t2i[diffusers]"'
CLASSES = ("AutoencoderKL", "AutoencoderTiny", "AutoencoderDC")
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"


class HubConfig(StrictConfig):
    """Settings of the autoencoder `hub`."""

    model: str = "madebyollin/taesd"
    """A name on the Hugging Face hub, or a local folder, with config.json and diffusion_pytorch_model.safetensors."""
    architecture: dict[str, Any] = {}
    """Contents of config.json; a snapshot holds them, so that it needs no other file. Empty: read from the model."""


@register("autoencoder", "hub")
class HubAutoencoder(LatentAutoencoder):
    """Maps RGB images to latents and back with a pretrained network.

    Raises `GanT2IError` where diffusers or the model is missing, and `UsageError` for images with alpha.
    """

    Config = HubConfig

    def __init__(self, config: HubConfig, *, resolution: int, channels: int = 3) -> None:
        if channels != 3:
            raise UsageError("autoencoder hub takes pictures without transparency: set data.alpha=false, or autoencoder.name=conv")
        if importlib.util.find_spec("diffusers") is None:
            raise GanT2IError(f"autoencoder hub needs the package diffusers: {EXTRA}, or set autoencoder.name=conv")
        architecture = config.architecture or read_architecture(config.model)
        stages = architecture.get("block_out_channels") or architecture["encoder_block_out_channels"]
        super().__init__(2 ** (len(stages) - 1), int(architecture["latent_channels"]))
        self.model, self.architecture = config.model, architecture
        self.network = build_network(self.architecture)

    @property
    def own_params(self) -> Mapping[str, Any]:
        return {"architecture": self.architecture}

    def load_pretrained(self) -> None:
        """Load the model's weights; raises `GanT2IError` where they do not fit its config."""
        found = find(self.model)
        tensors = load_tensors(Weights(found.path / WEIGHTS, found.sha256, found.source))
        try:
            self.network.load_state_dict(tensors)
        except RuntimeError as error:
            raise GanT2IError(f"{found.source}: its weights do not fit its {CONFIG}: {' '.join(str(error).split())[:200]}") from error

    def to_latents(self, images: Tensor) -> Tensor:
        encoded = self.network.encode(images, return_dict=False)[0]
        return encoded if isinstance(encoded, Tensor) else encoded.mode()

    def to_images(self, latents: Tensor) -> Tensor:
        return self.network.decode(latents, return_dict=False)[0]


def find(model: str) -> Weights:
    """Find the model in a local folder, in the hub's cache or on the hub; raises `GanT2IError` where it is unavailable or incomplete."""
    if Path(model).is_dir():
        if fault := _fault(Path(model)):
            raise GanT2IError(f"autoencoder.params.model = {model} {fault}")
        return local_weights(Path(model), "autoencoder")
    try:
        return Repository(model, None, [CONFIG, WEIGHTS], _fault).find("the autoencoder")
    except WeightsNotFoundError as error:
        raise GanT2IError(f"{error}: name a local folder in autoencoder.params.model") from error


def _fault(folder: Path) -> str | None:
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    return f"has no {missing[0]}" if missing else None


def read_architecture(model: str) -> dict[str, Any]:
    """Return the contents of a model's config.json; raises `GanT2IError` where it is not that of one of `CLASSES`."""
    path = find(model).path / CONFIG
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GanT2IError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict) or values.get("_class_name") not in CLASSES:
        raise GanT2IError(f"{path} does not describe an autoencoder that can be used; its _class_name must be one of {', '.join(CLASSES)}")
    return values


def build_network(architecture: dict[str, Any]) -> Any:
    """Build the network of an architecture, with random weights; raises `GanT2IError` where diffusers refuses it."""
    with quiet():
        import diffusers

        try:
            kind = getattr(diffusers, architecture["_class_name"])
            known = inspect.signature(kind.__init__).parameters
            return kind(**{name: value for name, value in architecture.items() if name in known})
        except (TypeError, ValueError, KeyError) as error:
            raise GanT2IError(f"the autoencoder cannot be built: {' '.join(str(error).split())[:200]}") from error
