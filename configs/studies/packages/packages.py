"""The public packages that the scripts beside this one hold gan_t2i against: their networks, about as large as ours, and what they need to run
on a CPU. Nothing that a user of gan_t2i installs asks for them."""

import contextlib
import importlib.machinery
import importlib.util
import io
import os
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gan_t2i.doctor.dry_run import count_parameters

PACKAGES = {"stylegan2_pytorch": "stylegan2-pytorch==1.9.0", "gigagan_pytorch": "gigagan-pytorch==0.3.0", "diffusers": "diffusers"}
RESOLUTION = 64


def require_packages() -> None:
    """Exits with a sentence that says what to install, where one is missing."""
    if missing := [package for module, package in PACKAGES.items() if importlib.util.find_spec(module) is None]:
        sys.exit(f"Error: {', '.join(missing)} not installed: pip install {' '.join(missing)}")


def stylegan2_networks() -> tuple[Any, types.ModuleType]:
    """stylegan2-pytorch's networks with their optimizers, and its module; float32, as its half precision needs CUDA."""
    # aim, a tracker of experiments that it imports for its logs alone, does not install everywhere
    if importlib.util.find_spec("aim") is None:
        sys.modules["aim"] = types.ModuleType("aim")
        sys.modules["aim"].__spec__ = importlib.machinery.ModuleSpec("aim", None)  # others ask whether it is there
    has_cuda = torch.cuda.is_available
    torch.cuda.is_available = lambda: True  # it refuses to be imported without
    try:
        from stylegan2_pytorch import stylegan2_pytorch as package
    finally:
        torch.cuda.is_available = has_cuda

    class OnCpu(package.StyleGAN2):
        def cuda(self, device: object = None) -> "OnCpu":
            """Its constructor asks for a GPU."""
            return self

    # 32 times the capacity is the widest layer that it would make; its copy for averages fails where fmap_max is less
    return OnCpu(RESOLUTION, network_capacity=6, fmap_max=192, latent_dim=256), package


def gigagan_networks(*, average: bool) -> Any:
    """gigagan-pytorch with its README's settings at 64 px but narrower, without text, whose encoder it would download; `average`: with EMA."""
    from gigagan_pytorch import GigaGAN

    sizes = {"dim_max": 64, "image_size": RESOLUTION, "num_skip_layers_excite": 4, "unconditional": True}
    with _elsewhere():  # it makes folders where it stands, and prints its sizes
        return GigaGAN(
            generator={"dim_capacity": 8, "self_attn_heads": 4, "style_network": {"dim": 64, "depth": 4}, **sizes},
            discriminator={"dim_capacity": 8, **sizes},
            accelerate_kwargs={"cpu": True},
            create_ema_generator_at_init=average,
        )


@contextlib.contextmanager
def _elsewhere() -> Iterator[None]:
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(home)


def diffusion_network(parameters: int, text_width: int) -> Any:
    """diffusers' UNet in pixels, of the width that brings it nearest to so many parameters, told by tokens of `text_width` numbers."""
    from diffusers import UNet2DConditionModel

    def unet(width: int) -> nn.Module:
        return UNet2DConditionModel(
            sample_size=RESOLUTION,
            in_channels=3,
            out_channels=3,
            layers_per_block=1,
            block_out_channels=(width, 2 * width, 2 * width),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=8,
            attention_head_dim=8,
            cross_attention_dim=text_width,
        )

    return min(map(unet, range(16, 65, 8)), key=lambda network: abs(count_parameters(network) - parameters))
