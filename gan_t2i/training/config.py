"""All settings of a training run. Durations are in kimg, thousands of training images shown."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

import gan_t2i.losses.terms
import gan_t2i.models
import gan_t2i.text  # noqa: F401 (all three register the classes that a config names)
from gan_t2i import registry
from gan_t2i.core.config import Count, NonNegative, Positive, StrictConfig, nearest
from gan_t2i.data.settings import DataConfig
from gan_t2i.losses.adversarial import LOSSES
from gan_t2i.losses.penalties import PenaltyConfig
from gan_t2i.losses.term import KIND, LossTerm
from gan_t2i.ops.augment import AugmentConfig
from gan_t2i.registry import Spec


class OptimizerConfig(StrictConfig):
    """Adam (arXiv 1412.6980) for both networks."""

    g_lr: Positive = 3e-4
    d_lr: Positive = 3e-4
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.0
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    g_orthogonal: bool = False
    """Orthogonalize the gradients of G's matrices and kernels first (Muon): G learns more from an image, for some arithmetic a step. D driven
    the same way outran G."""
    warmup_kimg: NonNegative = 1.0
    """Time over which the learning rates rise linearly from zero."""
    cooldown_kimg: NonNegative = 0.0
    """Time at the end of the run over which they fall linearly to zero."""


class EmaConfig(StrictConfig):
    """Moving average of G's weights, which snapshots hold."""

    half_life_kimg: NonNegative = 2.0
    ramp: NonNegative = 0.1
    """Largest half-life as a share of the images shown so far, so that early averages are not stale; 0 switches the ramp off."""


class ReportConfig(StrictConfig):
    """Intervals and contents of a run's records."""

    stats_kimg: Positive = 1.0
    grid_kimg: Positive = 8.0
    snapshot_kimg: Positive = 16.0
    """Interval of snapshots, and of the state to resume from."""
    snapshot_precision: Literal["float32", "bf16"] = "float32"
    """Precision of the weights in a snapshot; bf16 halves its file. The state keeps every bit."""
    grid_prompts: Count = 8
    """Prompts in the grid: half from training captions, half held out."""
    grid_seeds: Count = 4
    keep: Annotated[int, Field(ge=2)] | None = None
    """Largest number of snapshots: the one with the highest Text/match_gap and the newest ones; None keeps all."""


class MonitorConfig(StrictConfig):
    """Divergence checks, and the reaction to a failure."""

    patience_kimg: Positive = 50.0
    """Time for which D may win every comparison, or the generated images be alike, before the run rolls back to its last healthy state."""
    diversity: NonNegative = 0.1
    """Least distance among generated images, as a share of that among real ones; closer images count as collapsed. 0 switches the check off."""
    rollbacks: Annotated[int, Field(ge=0)] = 3
    """Largest number of rollbacks; after that the run stops."""
    rate_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Factor of both learning rates at each rollback."""


class EvaluateConfig(StrictConfig):
    """A benchmark of the averaged G during training, which takes the same course with it as without."""

    suite: Literal["none", "shapes"] = "none"
    kimg: Positive = 50.0
    """Interval; the end of the run is evaluated too."""
    limit: Annotated[int, Field(ge=2)] | None = 25
    """Prompts of each task, as `gan-t2i evaluate shapes --limit` takes them; null takes all."""
    seeds: Count = 1
    """Images per prompt."""


class DecoderConfig(StrictConfig):
    """Training of the decoder of an autoencoder `conv` after the game, so that it cleans what G draws; see `decoder.py`."""

    kimg: NonNegative = 0.0
    """Length, in thousands of images; 0: there is none."""
    perceptual: NonNegative = 0.0
    """Weight of the distance in pretrained features, which wants sharp edges; 0 needs no such features."""
    g_lr: NonNegative = 0.0
    """Learning rate at which G's average learns with the decoder; 0 leaves it as it is."""
    adversarial: NonNegative = 0.0
    """Weight of the loss of a discriminator of patches that reads the caption; 0: there is none. It was tried beside `perceptual` alone."""


class TrainConfig(StrictConfig):
    """A whole run."""

    kimg: Positive = 100.0
    """Length of the run."""
    init: str | None = None
    """Run folder or snapshot (or pretrained) whose weights the run starts from, where name and shape agree; one of smaller images grows."""
    resolution: int = 32
    """Side of the images: a power of two from 16 to 512."""
    batch: Count = 16
    """Images per step."""
    accumulation: Count = 1
    """Micro-batches per step, to save memory."""
    checkpointing: bool = False
    """Recompute the blocks of both networks in the backward passes: less memory, more arithmetic."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of every random number."""
    device: str = "auto"
    deterministic: bool = False
    """Add in a fixed order on a GPU, so that equal runs have equal bits; slower. On a CPU they have anyway."""
    capture: Literal["auto", "off"] = "auto"
    """Let a GPU replay training steps as CUDA graphs, without Python; a CPU has none."""
    precision: Literal["auto", "bf16", "float32"] = "auto"
    """Precision of convolutions and matrix products; auto takes bfloat16 where the hardware has it."""
    data: DataConfig = DataConfig()
    text_encoder: Spec = Spec(name="sentence-transformer")
    autoencoder: Spec = Spec(name="pixels")
    """Space that G draws in: pixels, or the latents of an autoencoder that is trained on the run's own images first."""
    decoder: DecoderConfig = DecoderConfig()
    generator: Spec = Spec(name="style")
    discriminator: Spec = Spec(name="resnet")
    loss: str = "relativistic"
    """Adversarial loss: relativistic, non_saturating or hinge."""
    terms: dict[str, dict[str, Any]] = {}
    """Settings of the auxiliary losses by name; see `losses/terms/`."""
    penalty: PenaltyConfig = PenaltyConfig()
    augment: AugmentConfig = AugmentConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    ema: EmaConfig = EmaConfig()
    report: ReportConfig = ReportConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    monitor: MonitorConfig = MonitorConfig()

    def build_terms(self) -> dict[str, LossTerm]:
        """Build every registered auxiliary loss, by name."""
        return {name: registry.build(KIND, name, params) for name, params in self.terms.items()}

    @field_validator("text_encoder", "autoencoder", "generator", "discriminator", mode="before")
    @classmethod
    def _default_name(cls, value: Any, info: Any) -> Any:
        """Take settings without a name for the default class's."""
        if isinstance(value, dict) and "name" not in value:
            return {"name": cls.model_fields[info.field_name].default.name, **value}
        return value

    @field_validator("text_encoder", "autoencoder", "generator", "discriminator")
    @classmethod
    def _resolve(cls, spec: Spec, info: Any) -> Spec:
        """Check settings against the registered class, and write its defaults out."""
        config = registry.config_for(info.field_name, spec.name, spec.params)
        return Spec(name=spec.name, params=config.model_dump(mode="json"))

    @field_validator("terms")
    @classmethod
    def _resolve_terms(cls, terms: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Check the settings of every registered term, and write its defaults out."""
        for name in terms:
            registry.lookup(KIND, name)
        resolved = {name: registry.config_for(KIND, name, terms.get(name, {}), where=f"terms.{name}") for name in registry.names(KIND)}
        return {name: config.model_dump(mode="json") for name, config in resolved.items()}

    @field_validator("loss")
    @classmethod
    def _known_loss(cls, loss: str) -> str:
        if loss not in LOSSES:
            raise ValueError(f"{loss!r} is not an adversarial loss; {nearest(loss, LOSSES)}")
        return loss

    @field_validator("resolution")
    @classmethod
    def _power_of_two(cls, resolution: int) -> int:
        if resolution not in (16, 32, 64, 128, 256, 512):
            raise ValueError(f"{resolution} is not a power of two from 16 to 512")
        return resolution

    @model_validator(mode="after")
    def _consistent(self) -> "TrainConfig":
        if self.batch % self.accumulation:
            raise ValueError(f"batch {self.batch} must be a multiple of accumulation {self.accumulation}")
        for term in self.build_terms().values():
            term.check(self)
        if self.decoder.kimg and self.autoencoder.name != "conv":
            raise ValueError(f"decoder.kimg trains the decoder of an autoencoder conv, and this is {self.autoencoder.name}: leave it out")
        if self.autoencoder.name != "pixels":
            for name in ("brightness", "saturation"):
                if getattr(self.augment, name):
                    raise ValueError(f"augment.{name} is a change of pixels, and latents have no colours: leave it out with an autoencoder")
        return self
