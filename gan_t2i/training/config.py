"""All settings of a training run. Durations are in kimg, thousands of training pictures shown."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

import gan_t2i.models
import gan_t2i.text  # noqa: F401 (both imports register the classes that a Spec names)
from gan_t2i import registry
from gan_t2i.core.config import Count, StrictConfig
from gan_t2i.data.settings import DataSettings
from gan_t2i.models.captioner import CaptionerConfig
from gan_t2i.ops.augment import AugmentConfig
from gan_t2i.registry import Spec

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class DataConfig(DataSettings):
    """Which pictures and captions."""

    source: str = "shapes"
    """A folder, file or brace pattern of tars, hf:owner/name, or a built-in set: shapes, emoji."""
    stream: bool = False
    """Train on tars where they lie, without packing them: for sets larger than the disk of the cache."""
    shuffle_buffer: Annotated[int, Field(ge=2)] = 10_000
    """Of a stream, which is shuffled by tars and then within so many pictures that follow each other."""
    balance: str | None = None
    """Column of the metadata, such as style: pictures of each of its values are shown equally often; None shows every picture equally often."""

    @model_validator(mode="after")
    def _what_a_stream_cannot(self) -> "DataConfig":
        if self.stream and (self.alpha or self.balance or len(self.templates) > 1):
            raise ValueError("stream reads tars as they lie, without alpha, balance and templates: leave those out, or the stream")
        return self


class LossConfig(StrictConfig):
    """What the two networks play for."""

    name: Literal["relativistic", "non_saturating", "hinge"] = "relativistic"
    match_weight: NotNegative = 1.0
    """Weight of the term that tells D a real picture with another item's caption is wrong."""
    generator_match_weight: NotNegative = 0.0
    """Weight of the term that asks G for pictures that D gives to their own caption rather than to the negatives."""
    reconstruction_weight: NotNegative = 0.0
    """Weight of the mean squared distance between a drawn picture and the real one of its caption (pix2pix, arXiv 1611.07004): for sets
    where a caption has about one picture, and too few for D alone to teach G from nothing. Seeds of a prompt come to look alike."""
    reconstruction_kimg: Positive | None = None
    """Over which that weight falls to nothing, so that D alone has the last word on details; None: it stays."""
    negatives: tuple[Literal["random", "one_change", "nearest"], ...] = ("random",)
    """Those other captions, one a picture for each mention: any other's, one that is wrong in a single respect (data with scenes), or one
    of those that the text encoder places nearest to the picture's own."""


class CaptionerTraining(StrictConfig):
    """A network that learns from the real pairs to tell a picture's caption, before the run begins; G is asked for pictures of which it tells
    what G was told. It learns nothing from drawn pictures."""

    weight: NotNegative = 0.0
    """Of G's term, the mean of -log p(word | picture, words before it), in nats; 0: there is no captioner."""
    size: CaptionerConfig = CaptionerConfig()
    kimg: Positive = 120.0
    """Real pictures that it is shown, in thousands."""
    batch: Count = 32
    learning_rate: Positive = 1e-3
    noise: NotNegative = 1.0
    """Largest standard deviation of the noise on what it is shown, real or drawn; the range of a pixel is 2. With little of it G finds fine
    patterns that please the captioner and show nobody anything."""


class LayoutTraining(StrictConfig):
    """How a generator's layout is taught, before the run begins, where captions put what they name."""

    localizer_kimg: Positive = 60.0
    """Real pictures from which it is learned how each word looks, in thousands, ..."""
    kimg: Positive = 60.0
    """... and from which it is then learned where sentences put them."""
    vocabulary_size: Count = 2000
    """Most tokens that are placed: the most frequent ones."""
    batch: Count = 32
    learning_rate: Positive = 5e-4
    noise: NotNegative = 0.3
    """Largest standard deviation of the noise on pictures; the range of a pixel is 2."""


class PenaltyConfig(StrictConfig):
    """How the slope of D is kept in check, at real (R1) and at drawn (R2) pictures; with both gammas at 0 not at all, and at no cost."""

    name: Literal["gradient", "finite_difference"] = "gradient"
    r1_gamma: NotNegative = 1.0
    r2_gamma: NotNegative = 1.0
    interval: Count = 4
    """Every how many steps; the weight is multiplied by it, so that the mean pull stays the same."""
    fraction: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the batch that is looked at."""
    step: Positive = 0.01
    """Step of the finite difference; the range of a pixel is 2."""


class BlurConfig(StrictConfig):
    """D sees pictures blurred at first, so that it judges what is where before it judges pixels. The discriminator `projected` needs it."""

    sigma: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Standard deviation at the beginning, as a share of the picture's side; 0: pictures are never blurred."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Of the run's kimg, over which the blur falls to nothing."""


class OptimizerConfig(StrictConfig):
    """Adam (arXiv 1412.6980) for both networks."""

    g_lr: Positive = 3e-4
    d_lr: Positive = 3e-4
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.0
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    g_orthogonal: bool = False
    """Gradients of G's matrices and kernels are made orthogonal first (Muon): more is learned from a picture, for some arithmetic a step. D
    so driven outran G."""
    warmup_kimg: NotNegative = 1.0
    """The learning rates rise linearly from zero over this time, ..."""
    cooldown_kimg: NotNegative = 0.0
    """... and fall linearly to zero over this time at the end of the run."""


class EmaConfig(StrictConfig):
    """Moving average of G's weights, which is what snapshots hold."""

    half_life_kimg: NotNegative = 2.0
    ramp: NotNegative = 0.1
    """The half-life is at most this share of the pictures shown so far, so that early averages are not stale; 0 switches the ramp off."""


class ReportConfig(StrictConfig):
    """What is written down, and how often."""

    stats_kimg: Positive = 1.0
    grid_kimg: Positive = 8.0
    snapshot_kimg: Positive = 16.0
    """A snapshot and the state to continue from."""
    snapshot_precision: Literal["float32", "bf16"] = "float32"
    """Of the weights in a snapshot; bf16 halves its file. The state keeps every bit."""
    grid_prompts: Count = 8
    """Prompts in the grid: half from training captions, half held out."""
    grid_seeds: Count = 4
    keep: Annotated[int, Field(ge=2)] | None = None
    """At most this many snapshots stay: the one with the highest Text/match_gap, and the newest; None keeps all."""


class MonitorConfig(StrictConfig):
    """When a run has gone wrong, and what is done then."""

    patience_kimg: Positive = 50.0
    """For how long D may tell every picture apart, or the drawn pictures be alike, before the run goes back to its last good state."""
    diversity: NotNegative = 0.1
    """Drawn pictures are alike when they differ from each other by less than this share of what real ones do; 0 lets them be."""
    rollbacks: Annotated[int, Field(ge=0)] = 3
    """How often a run may go back; then it stops."""
    rate_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Both learning rates are multiplied by it each time, and stay so."""


class EvaluateConfig(StrictConfig):
    """A benchmark of the averaged G while it trains. Training goes the same way with it as without."""

    suite: Literal["none", "shapes"] = "none"
    kimg: Positive = 50.0
    """How often; and once at the end."""
    limit: Annotated[int, Field(ge=2)] | None = 25
    """Only the first so many prompts of each task, as `gan-t2i evaluate --limit` takes them; null takes all."""
    seeds: Count = 1
    """Pictures a prompt."""


class TrainConfig(StrictConfig):
    """A whole run."""

    kimg: Positive = 100.0
    """How long to train."""
    init: str | None = None
    """A run folder or a snapshot (or pretrained) to begin with the weights of, where name and shape agree; one of smaller pictures grows."""
    resolution: int = 32
    """Side of the pictures: a power of two from 16 to 512."""
    batch: Count = 16
    """Pictures a step."""
    accumulation: Count = 1
    """The batch is worked off in this many parts, to save memory."""
    checkpointing: bool = False
    """The blocks of both networks keep their inputs alone and are computed again in the backward passes: less memory, more arithmetic."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Of every random draw."""
    device: str = "auto"
    deterministic: bool = False
    """On a GPU: sums are taken in the same order each time, which is slower, so that equal runs have equal bits; on a CPU they have anyway."""
    precision: Literal["auto", "bf16", "float32"] = "auto"
    """auto: bfloat16 where the hardware has it."""
    data: DataConfig = DataConfig()
    text_encoder: Spec = Spec(name="sentence-transformer")
    generator: Spec = Spec(name="style")
    discriminator: Spec = Spec(name="resnet")
    loss: LossConfig = LossConfig()
    captioner: CaptionerTraining = CaptionerTraining()
    grounding: LayoutTraining = LayoutTraining()
    penalty: PenaltyConfig = PenaltyConfig()
    augment: AugmentConfig = AugmentConfig()
    blur: BlurConfig = BlurConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    ema: EmaConfig = EmaConfig()
    report: ReportConfig = ReportConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    monitor: MonitorConfig = MonitorConfig()

    @field_validator("text_encoder", "generator", "discriminator", mode="before")
    @classmethod
    def _default_name(cls, value: Any, info: Any) -> Any:
        """Settings without a name are the default class's."""
        if isinstance(value, dict) and "name" not in value:
            return {"name": cls.model_fields[info.field_name].default.name, **value}
        return value

    @field_validator("text_encoder", "generator", "discriminator")
    @classmethod
    def _resolve(cls, spec: Spec, info: Any) -> Spec:
        """Settings checked against the registered class, and its defaults written out."""
        config = registry.config_for(info.field_name, spec.name, spec.params)
        return Spec(name=spec.name, params=config.model_dump(mode="json"))

    @field_validator("resolution")
    @classmethod
    def _power_of_two(cls, resolution: int) -> int:
        if resolution not in (16, 32, 64, 128, 256, 512):
            raise ValueError(f"{resolution} is not a power of two from 16 to 512")
        return resolution

    @model_validator(mode="after")
    def _whole_parts(self) -> "TrainConfig":
        if self.batch % self.accumulation:
            raise ValueError(f"batch {self.batch} must be a multiple of accumulation {self.accumulation}")
        if self.loss.match_weight and self.batch < 2:
            raise ValueError("loss.match_weight needs a batch of at least two pictures, to hold one against the other's caption")
        if self.data.stream and (others := sorted({*self.loss.negatives} - {"random"})):
            raise ValueError(f"loss.negatives {others[0]} needs all captions at hand, which data.stream has not; allowed with it: random")
        if self.data.stream and self.generator.params.get("layout"):
            raise ValueError("generator.params.layout needs all pictures at hand, which data.stream has not: leave one of them out")
        if self.data.stream and self.captioner.weight:
            raise ValueError("captioner.weight needs all pictures at hand, which data.stream has not: leave one of them out")
        return self
