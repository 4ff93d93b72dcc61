"""Measurements of a config before it is trained: layers, memory, speed and time. Nothing is written to a run folder."""

import contextlib
import copy
import io
import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from gan_t2i import registry
from gan_t2i.core import recipes
from gan_t2i.core.config import read_yaml
from gan_t2i.core.distributed import world_size
from gan_t2i.core.errors import GanT2IError
from gan_t2i.core.log import muted
from gan_t2i.core.runtime import peak_memory_gib
from gan_t2i.core.words import counted
from gan_t2i.data.builtin import resolve_source
from gan_t2i.data.builtin.basic_shapes import BASIC_SHAPES
from gan_t2i.data.builtin.shapes import make_shapes
from gan_t2i.data.decode import BadImageError, load_image, to_image
from gan_t2i.data.packing import PackedDataset, is_packed, pack
from gan_t2i.data.readers import read
from gan_t2i.data.records import TRAIN, Record
from gan_t2i.data.settings import DataConfig, DataSettings
from gan_t2i.doctor.flops import FlopCounter, convolution_rate, seconds_of
from gan_t2i.models.autoencoders.base import LatentAutoencoder, TrainingSettings
from gan_t2i.pretraining.autoencoder_training import AutoencoderTraining
from gan_t2i.text import weights
from gan_t2i.training.config import TrainConfig
from gan_t2i.training.decoder import DecoderTraining
from gan_t2i.training.session import Session, prepare

# Timed steps, roughly; as many come before them, in which kernels are chosen and memory is allocated.
TIMED_STEPS = 8
LEAST_SECONDS = 0.25  # of timed steps: a GPU takes few of them in less time than it varies by
DECODER = "decoder"  # among the names of pretraining, though it comes after the game
EXAMPLES = 12  # pictures that a pace is measured with


def dry_run_report(config: TrainConfig) -> str:
    """Return both layer tables, and the memory and time of a run, measured on a few steps of networks that are thrown away."""
    session = prepare(config, measured=True)
    batch, networks = session.preview_batch(2), session.networks
    real, text = session.latents(batch.images), session.cache.gather(batch.captions).to(session.device)
    z = torch.randn(2, networks.G.z_width, device=session.device)
    with torch.no_grad():
        generator_rows = layer_table(networks.G, lambda: networks.G.eval()(z, text))
        networks.G.train()
        discriminator_rows = layer_table(networks.D, lambda: networks.D(real, networks.D.text_head(text)))
    return "\n".join(
        [
            f"generator {config.generator.name}: {count_parameters(networks.G):,} parameters",
            *generator_rows,
            f"discriminator {config.discriminator.name}: {count_parameters(networks.D):,} parameters",
            *discriminator_rows,
            _estimate(session),
            "dry run: nothing was trained or written to a run folder",
        ]
    )


def count_parameters(network: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def layer_table(network: nn.Module, forward: Callable[[], object]) -> list[str]:
    """Return a line for each module that `forward` runs, two levels deep: name, class, parameters, shape of the output."""
    shapes: dict[nn.Module, str] = {}

    def note(part: nn.Module, inputs: object, output: object) -> None:
        shapes[part] = _shape(output)

    parts = [(name, part) for name, part in network.named_modules() if name and name.count(".") < 2]
    with contextlib.ExitStack() as hooks:
        for _, part in parts:
            hooks.enter_context(part.register_forward_hook(note))
        forward()
    return [
        f"  {name:34} {type(part).__name__:20} {sum(p.numel() for p in part.parameters()):>11,}  {shapes.get(part, '')}" for name, part in parts
    ]


def _shape(output: object) -> str:
    """Return the shapes of tensors without the batch."""
    if isinstance(output, Tensor):
        return "x".join(map(str, output.shape[1:])) or "1"
    if isinstance(output, tuple):
        return ", ".join(map(_shape, output))
    return ", ".join(_shape(value) for value in vars(output).values() if isinstance(value, Tensor))


@dataclass(frozen=True)
class Pace:
    """Speed and memory of a run, from a few real steps; `str` gives the lines to show."""

    where: str  # processes and device
    steps: int
    batch: int
    kimg: float
    rate: float  # images per second
    peak_gib: float
    pretraining: Mapping[str, float] = field(default_factory=dict)
    """Minutes of each pretraining that comes before the run, by name."""

    @property
    def minutes(self) -> float:
        """Minutes of the run, without pretraining."""
        return self.kimg * 1000 / self.rate / 60

    def __str__(self) -> str:
        line = (
            f"estimate on {self.where}, from {counted(self.steps, 'step')} of {counted(self.batch, 'picture')}: {self.rate:.0f} img/s, "
            f"{self.minutes:.0f} minutes for {self.kimg:g} kimg, {self.peak_gib:.1f} GiB at the peak"
        )
        when = dict.fromkeys(self.pretraining, "pretraining before the run, once for these data") | {DECODER: "after the run"}
        return line + "".join(f"\n{when[name]}: {name}, {minutes:.1f} minutes" for name, minutes in self.pretraining.items())


def _estimate(session: Session) -> str:
    """Return lines on the pace of a run and how close it comes to the machine's limit, from real steps in whole intervals of the penalty."""
    config, interval = session.config, session.config.penalty.interval
    counted = []
    for number in range(min(interval, 2)):  # the first has the penalty, the others of an interval are like the second
        with session.step.eager(), FlopCounter() as counter:
            session.run_step(number * config.batch)
        counted.append(counter.total)
    operations = counted[0] + (interval - 1) * counted[-1]
    gflop = operations * world_size() / (interval * config.batch) / 1e9  # per image
    pace = measure_pace(session, max(1, TIMED_STEPS // interval))
    reached, limit = pace.rate * gflop, convolution_rate(session.device, config.precision) * world_size()
    return (
        f"{pace}\narithmetic: {gflop:.2f} GFLOP per picture, {reached:.0f} GFLOP/s, {reached / limit:.0%} of this machine's "
        f"{limit:.0f} GFLOP/s in 3x3 convolutions of 128 channels at the same precision"
    )


def measure_pace(session: Session, intervals: int = 1) -> Pace:
    """Return speed and memory of a run, with its pretraining, from the steps of that many intervals of the penalty, or of more where those take
    less than `LEAST_SECONDS`."""
    config, device = session.config, session.device

    def run(steps: int) -> None:
        for number in range(steps):
            session.run_step(number * config.batch)

    # a step with the penalty and one without: kernels are chosen, memory is allocated, and a GPU captures both
    run(min(2, config.penalty.interval))
    steps = intervals * config.penalty.interval
    seconds = seconds_of(partial(run, steps), device)
    if seconds < LEAST_SECONDS:
        steps *= math.ceil(LEAST_SECONDS / seconds)
        seconds = seconds_of(partial(run, steps), device)
    where = f"{world_size()} processes, each {device}" if world_size() > 1 else str(device)
    rate, pretraining = steps * config.batch / seconds, _pretraining_minutes(session)
    return Pace(where, steps, config.batch, config.kimg, rate, peak_memory_gib(device), pretraining)


def _pretraining_minutes(session: Session) -> dict[str, float]:
    """Return the minutes of each pretraining that a run would begin with, by name, from a few batches of it."""
    minutes = _autoencoder_minutes(session) | _decoder_minutes(session)
    for name, term in session.terms.items():
        if kimg := term.pretraining_kimg:
            share = term.config.batch / (kimg * 1000)  # of the pretraining, that one batch makes
            batches = (2, 2, 2 + TIMED_STEPS)  # kernels are chosen in the first two
            _, few, more = (seconds_of(partial(term.pretrain, session.parts, number * share), session.device) for number in batches)
            minutes[name] = (more - few) / (TIMED_STEPS * share) / 60
    return minutes


def _autoencoder_minutes(session: Session) -> dict[str, float]:
    """Return the minutes that the run's autoencoder is trained for, by its name; nothing where it is not trained."""
    config, network = session.config, copy.deepcopy(session.networks.autoencoder)
    settings = registry.config_for("autoencoder", config.autoencoder.name, config.autoencoder.params)
    if session.autoencoder.taken_over or not isinstance(network, LatentAutoencoder) or not isinstance(settings, TrainingSettings):
        return {}
    training = AutoencoderTraining(
        network, settings, session.dataset, None, device=session.device, seed=config.seed, precision=config.precision
    )
    training.step()  # kernels are chosen
    seconds = seconds_of(lambda: [training.step() for _ in range(TIMED_STEPS)], session.device) / TIMED_STEPS
    return {"autoencoder": seconds * settings.kimg * 1000 / settings.batch / 60}


def _decoder_minutes(session: Session) -> dict[str, float]:
    """Return the minutes that the decoder is finished for after the game, if it is."""
    if not session.config.decoder.kimg:
        return {}
    training = DecoderTraining(session)
    training.step(0)  # kernels are chosen
    seconds = seconds_of(lambda: [training.step(0) for _ in range(TIMED_STEPS)], session.device) / TIMED_STEPS
    return {DECODER: seconds * training.total / training.batch / 60}


def examples_of(config: TrainConfig) -> list[Record]:
    """Return a few records of a config's data, spread over them, for `pace_on`; errors as for `readers.read`."""
    source = resolve_source(config.data.source, config.resolution, config.data)
    if isinstance(source, Path) and is_packed(source):
        records = PackedDataset.open(source).records()
    else:
        records = read(source, config.data).records
    return list(records[:: max(1, len(records) // EXAMPLES)][:EXAMPLES])


def pace_on(config: TrainConfig, records: Sequence[Record]) -> Pace:
    """Return `measure_pace` of a config on these few pictures, shown again and again: the time of a step does not depend on their number.

    Nothing stays on disk. Raises `GanT2IError` where the config does not fit into memory, or the encoder's weights cannot be found.
    """
    with tempfile.TemporaryDirectory(prefix="gan_t2i_doctor_") as folder:
        packed = _pack_few(records, Path(folder), config)
        data = DataConfig(source=str(packed), holdout_fraction=0.0, alpha=config.data.alpha)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()  # an earlier config's peak does not count
        try:
            with muted(), contextlib.redirect_stderr(io.StringIO()):  # log and progress bars would report on these few pictures
                session = prepare(_without_download(config).model_copy(update={"data": data}), measured=True, text_folder=Path(folder) / "text")
                return measure_pace(session)
        except torch.OutOfMemoryError as error:
            raise GanT2IError(f"{config.batch // config.accumulation} pictures at once do not fit into memory: raise accumulation") from error


def pace_of_quickstart() -> Pace:
    """Return the pace of the recipe quickstart on a few pictures of its set."""
    config = TrainConfig.parse(read_yaml(recipes.find("quickstart")))
    with tempfile.TemporaryDirectory(prefix="gan_t2i_doctor_") as folder:
        pictures = make_shapes(Path(folder) / "pictures", kind=BASIC_SHAPES, count=EXAMPLES, size=config.resolution, progress=False)
        return pace_on(config, list(read(pictures, config.data).records))


def _without_download(config: TrainConfig) -> TrainConfig:
    """Return the config with a text encoder that needs no download, where its own is the default one and not on this machine; a step takes
    about as long with it."""
    if config.text_encoder.params.get("model") != weights.MINILM.id or weights.find_local() is not None:
        return config
    return TrainConfig.parse({**config.model_dump(), "text_encoder": {"name": "tiny"}})


def _pack_few(records: Sequence[Record], folder: Path, config: TrainConfig) -> Path:
    """Pack the pictures of `records` below `folder`, all of them for training; returns the packed folder."""
    pictures = folder / "pictures"
    pictures.mkdir()
    with (pictures / "metadata.jsonl").open("w", encoding="utf-8") as file:
        for number, record in enumerate(records):
            try:
                to_image(load_image(record.image, config.resolution, config.data)).save(pictures / f"{number}.png")
            except BadImageError:
                continue
            # A caption of its own: the mismatch term refuses data in which all captions are the same, as these few may be.
            own = {"file_name": f"{number}.png", "text": [*record.captions, f"picture {number}"], "split": TRAIN}
            file.write(json.dumps({**record.extra, **own}) + "\n")
    settings = DataSettings(caption_column="text", alpha=config.data.alpha)
    return pack(pictures, folder / "packed", config.resolution, settings, progress=False).folder
