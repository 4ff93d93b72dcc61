"""Where and how the numbers are computed: device, memory, precision, and random draws that depend on nothing but (seed, rank, nimg)."""

import contextlib
import hashlib
import os
import sys
from contextlib import AbstractContextManager

import torch

from gan_t2i.core.errors import UsageError


def pick_device(name: str = "auto") -> torch.device:
    """The device called `name`; ``auto`` takes CUDA, then Apple's MPS, then the CPU. Raises `UsageError` where it is not there."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("it is not made for training")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or ["unknown"])[0]
        raise UsageError(f"device {name!r} cannot be used here ({reason}); allowed: auto, cpu, cuda, cuda:N, mps") from error
    return device


def set_gpu_arithmetic(*, fixed_order: bool, exact_convolutions: bool) -> None:
    """How a GPU computes from now on in this process; a CPU does both anyway.

    Args:
        fixed_order: it adds in the same order each time, so that the same step gives the same bits; slower.
        exact_convolutions: those in float32 keep all of its bits. Else torch takes TF32's ten: enough for the penalty of a gradient, which
            StyleGAN2-ADA (arXiv 2006.06676) takes through float16 with as many, and too few for a finite difference, forward or backward.
    """
    if fixed_order:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it before its first product
    torch.use_deterministic_algorithms(fixed_order)
    # nothing here reads memory that it has not written
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.conv.fp32_precision = "ieee" if exact_convolutions else "tf32"  # type: ignore[attr-defined]


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 arithmetic is done by the hardware; where it is emulated it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        # a torch without this call is treated as one without bfloat16: slower, never wrong
        capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))
    return False


def product_dtype(device: torch.device, precision: str) -> torch.dtype:
    """What convolutions and matrix products are computed in, by `precision` ("auto", "bf16", "float32")."""
    return torch.bfloat16 if precision == "bf16" or (precision == "auto" and has_fast_bf16(device)) else torch.float32


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Context in which convolutions and matrix products run in `product_dtype`."""
    dtype = product_dtype(device, precision)
    return contextlib.nullcontext() if dtype is torch.float32 else torch.autocast(device.type, dtype=dtype)


def autocast_off(device: torch.device) -> AbstractContextManager[object]:
    """Context that switches autocast off, for what needs float32: penalties, demodulation, resampling."""
    return torch.autocast(device.type, enabled=False)


def synchronize(device: torch.device) -> None:
    """Wait until `device` has done all that it was told; a clock that is read before shows the telling alone."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def peak_memory_gib(device: torch.device) -> float:
    """Most memory that the process (on a GPU: its tensors there) has held, in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource  # Windows has none

    # Linux counts in KiB, macOS in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def seeded_rng(*key: int | str) -> torch.Generator:
    """A CPU generator that depends on `key` alone, e.g. (seed, rank, nimg, "latents"); the source of every random draw."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
