"""Device, precision, memory, and seeded random generators."""

import contextlib
import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch

from gan_t2i.core.errors import UsageError


def pick_device(name: str = "auto") -> torch.device:
    """Return the device called `name`; ``auto`` takes CUDA, then Apple's MPS, then the CPU. Raises `UsageError` where it does not exist."""
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


@contextlib.contextmanager
def torch_defaults() -> Iterator[None]:
    """Run a block, or a decorated function, with torch as it starts, whatever the caller has set, and give the caller's settings back.

    These are the default dtype and device, the precision of float32, the autograd mode and autocast. New weights are drawn within
    `seeded_weights`.
    """
    dtype, backends = torch.get_default_dtype(), torch.backends
    with contextlib.ExitStack() as stack:
        # all threads share these two, so they are left alone where they are as needed
        if dtype != torch.float32:
            stack.callback(torch.set_default_dtype, dtype)
            torch.set_default_dtype(torch.float32)
        for operation in (backends.cuda.matmul, backends.mkldnn.matmul, backends.mkldnn.conv):  # type: ignore[attr-defined]
            if operation.fp32_precision not in ("none", "ieee"):  # as torch.set_float32_matmul_precision leaves it
                stack.callback(setattr, operation, "fp32_precision", operation.fp32_precision)
                operation.fp32_precision = "ieee"
        if torch.get_default_device().type != "cpu":  # within the context, every call is slower
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in filter(torch.is_autocast_enabled, ("cpu", "cuda", "mps")):
            stack.enter_context(torch.autocast(kind, enabled=False))
        # rounded weights are cached until the outermost autocast ends, which within the caller's would never come
        depth = torch.autocast_increment_nesting()
        for _ in range(depth):
            torch.autocast_decrement_nesting()
            stack.callback(torch.autocast_increment_nesting)
        stack.callback(torch.autocast_decrement_nesting)
        yield


def set_gpu_arithmetic(*, fixed_order: bool, exact_convolutions: bool) -> None:
    """Set how a GPU computes from now on in this process; a CPU does both anyway.

    Args:
        fixed_order: add in the same order each time, so that the same step gives the same bits; slower.
        exact_convolutions: keep all bits of float32. Otherwise torch takes TF32's ten: enough for a gradient penalty, which StyleGAN2-ADA
            (arXiv 2006.06676) takes through float16 with as many, and too few for a finite difference, forward or backward.
    """
    if fixed_order:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it before its first product
    torch.use_deterministic_algorithms(fixed_order)
    # nothing here reads memory that it has not written
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.conv.fp32_precision = "ieee" if exact_convolutions else "tf32"  # type: ignore[attr-defined]


@contextlib.contextmanager
def gpu_arithmetic_restored() -> Iterator[None]:
    """Undo, after a block or a decorated function, what `set_gpu_arithmetic` did in it."""
    deterministic, conv = torch.utils.deterministic, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    order = {"mode": torch.are_deterministic_algorithms_enabled(), "warn_only": torch.is_deterministic_algorithms_warn_only_enabled()}
    fill, precision = deterministic.fill_uninitialized_memory, conv.fp32_precision  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(**order)
        deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
        conv.fp32_precision = precision


def has_fast_bf16(device: torch.device) -> bool:
    """True if the hardware computes in bfloat16; where it is emulated it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        # a torch without this call is treated as one without bfloat16: slower, never wrong
        capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))
    return False


def product_dtype(device: torch.device, precision: str) -> torch.dtype:
    """Return the type that convolutions and matrix products are computed in, by `precision` ("auto", "bf16", "float32")."""
    return torch.bfloat16 if precision == "bf16" or (precision == "auto" and has_fast_bf16(device)) else torch.float32


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return a context in which convolutions and matrix products run in `product_dtype`."""
    dtype = product_dtype(device, precision)
    return contextlib.nullcontext() if dtype is torch.float32 else torch.autocast(device.type, dtype=dtype)


def autocast_off(device: torch.device) -> AbstractContextManager[object]:
    """Return a context without autocast, for what needs float32: penalties, demodulation, resampling."""
    return torch.autocast(device.type, enabled=False)


def synchronize(device: torch.device) -> None:
    """Wait until `device` has finished all queued work; a clock that is read earlier shows only the time to queue it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def peak_memory_gib(device: torch.device) -> float:
    """Return the peak memory of the process (on a GPU: of its tensors there), in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource  # Windows has none

    # Linux counts in KiB, macOS in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


@contextlib.contextmanager
def seeded_weights(seed: int) -> Iterator[None]:
    """Let torch draw new weights on the CPU from `seed` alone within the block; the caller's random numbers, a GPU's too, stay as they are."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every GPU too
        yield


def seeded_rng(*key: int | str) -> torch.Generator:
    """Return a CPU generator that depends on `key` alone, e.g. (seed, "latents", nimg); every random number comes from one."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
