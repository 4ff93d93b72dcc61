"""``gan-t2i bench``: configs side by side in training and in sampling, with the limits of the machine."""

import contextlib
import logging
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from gan_t2i.core.files import output_file
from gan_t2i.core.runtime import has_fast_bf16
from gan_t2i.core.words import counted
from gan_t2i.doctor.dry_run import count_parameters
from gan_t2i.doctor.flops import convolution_rate, matmul_rate
from gan_t2i.doctor.sample_speed import BATCH, SampleSpeed, draw_one, measure_sampling
from gan_t2i.doctor.train_speed import TrainSpeed, measure_training, temporary_loop
from gan_t2i.sampling.pipeline import Text2Image
from gan_t2i.training.config import TrainConfig
from gan_t2i.training.session import Session, prepare

log = logging.getLogger(__name__)

PROMPTS = 64


@dataclass(frozen=True)
class Measured:
    """Measurements of one config."""

    name: str
    config: dict[str, Any]
    device: str
    threads: int
    torch: str
    """Version of torch."""
    parameters: dict[str, int]
    """Trainable parameters of G and D."""
    machine_gflop_per_second: dict[str, float]
    """Speeds of round shapes; see `machine_rates`."""
    training: TrainSpeed
    sampling: SampleSpeed

    def table(self) -> str:
        """Return a few lines for the screen."""
        config, training, sampling = self.config, self.training, self.sampling
        eager = training.eager_images_per_second
        captured = f", captured; {eager:.4g} img/s one operation at a time" if eager else ""
        rows = {
            "networks": ", ".join(f"{name} {count:,} parameters" for name, count in self.parameters.items()),
            "training": f"{training.images_per_second:.4g} img/s ({training.slowest:.4g} to {training.fastest:.4g}){captured}",
            "phases": ", ".join(f"{name} {share:.1%}" for name, share in training.shares.items()),
            "arithmetic": f"{training.gflop_per_image:.3g} GFLOP per picture, {training.gflop_per_second:.4g} GFLOP/s",
            "machine": ", ".join(f"{name} {rate:.4g} GFLOP/s" for name, rate in self.machine_gflop_per_second.items()),
            "own shapes": ", ".join(f"{kind} {value.rate:.4g} GFLOP/s" for kind, value in training.ceilings.items()),
            "limit": f"{training.ceiling.rate:.4g} GFLOP/s over all of the step's own shapes; {training.share_of_limit:.0%} of it reached",
            "sampling": f"first picture {_ms(sampling.first)}, then {_ms(sampling.warm)} (encoder {_ms(sampling.encoder)}, generator "
            f"{_ms(sampling.generator)}, {sampling.overhead:.2f} times their sum), {_ms(sampling.known)} from a known prompt",
            f"batch of {BATCH}": f"first {_ms(sampling.batch_first)} per picture, then {_ms(sampling.batch_warm)}",
            "memory": f"{training.peak_memory_gib:.2f} GiB at the peak",
        }
        head = f"{self.name}: {config['resolution']} px, batch {config['batch']}, {training.steps} steps a repeat, on {self.device}"
        return "\n".join([head, *(f"  {name:12} {text}" for name, text in rows.items())])


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms"


def run_benchmark(name: str, config: TrainConfig, *, steps: int, repeats: int, trace: Path | None) -> Measured:
    """Measure one config with new networks; `trace` is a file for a profiler trace of a few more steps and a picture, None for no trace.

    Raises `GanT2IError` where data or text encoder are missing, and `UsageError` where the trace cannot be written.
    """
    session = prepare(config, measured=True)
    reset_peak_memory(session.device)
    pipeline = Text2Image(session.networks.images, session.encoder, session.snapshot_info(0))
    networks = {"G": count_parameters(session.networks.G), "D": count_parameters(session.networks.D)}
    # sampling comes first, so that its first call is the generator's first
    sampling = measure_sampling(pipeline, some_captions(session), repeats)
    training = measure_training(session, steps, repeats)
    machine = machine_rates(session.device)
    if trace is not None:
        write_trace(trace_steps(session, pipeline), trace)
        log.info(f"written: {trace} (open it in https://ui.perfetto.dev, chrome://tracing or TensorBoard's profiler)")
    values, device = config.model_dump(mode="json"), _device_name(session.device)
    return Measured(name, values, device, torch.get_num_threads(), torch.__version__, networks, machine, training, sampling)


def some_captions(session: Session) -> list[str]:
    """Return captions spread over the data set."""
    captions = session.dataset.captions
    return captions[:: max(1, len(captions) // PROMPTS)]


def machine_rates(device: torch.device) -> dict[str, float]:
    """Return GFLOP/s for round shapes: convolutions of 128 channels at 32x32, matrices of 2048; in bfloat16 too where the hardware has it."""
    precisions = ({"bf16": torch.bfloat16} if has_fast_bf16(device) else {}) | {"float32": torch.float32}
    rates = {f"convolution {name}": convolution_rate(device, name) for name in precisions}
    return rates | {f"matmul {name}": matmul_rate(device, dtype) for name, dtype in precisions.items()}


def reset_peak_memory(device: torch.device) -> None:
    """Reset the peak of memory, so that `peak_memory_gib` is this config's; where the system cannot, it stays the whole process's."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):  # Linux has it, but not every container
            Path("/proc/self/clear_refs").write_text("5")


def trace_steps(session: Session, pipeline: Text2Image) -> profile:
    """Return a profile of the steps from one penalty to the next, a tick, and one picture."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if session.device.type == "cuda" else [])]
    with temporary_loop(session) as loop:
        loop.run(1)
        with profile(activities=activities, record_shapes=True) as profiler:
            loop.run(session.config.penalty.interval)
            loop.tick()
            draw_one(pipeline, some_captions(session)[0])
    return profiler


def write_trace(profiler: profile, path: Path) -> None:
    """Write a trace in Chrome's format, compressed where `path` ends in .gz; raises `UsageError` where it cannot be written."""
    with output_file(path) as temporary, tempfile.TemporaryDirectory(prefix="gan_t2i_bench_") as folder:
        exported = Path(folder) / path.name  # the profiler looks at the suffix, which a temporary file does not have
        profiler.export_chrome_trace(str(exported))
        shutil.copyfile(exported, temporary)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({counted(torch.get_num_threads(), 'thread')})" if device.type == "cpu" else str(device)
