"""A GPU computes what a CPU computes. `pytest -m gpu` on a machine with one; tests/training/test_resume.py has more of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image

from gan_t2i.cli.main import command
from gan_t2i.core.runtime import pick_device
from gan_t2i.runs import RunFolder
from gan_t2i.sampling.pipeline import Text2Image
from gan_t2i.training.session import Session

pytestmark = pytest.mark.gpu
ALIGNED = {"name": "aligned", "params": {"channel_base": 128, "channel_max": 16}}


def test_auto_takes_it() -> None:
    assert pick_device().type == "cuda"


@pytest.mark.parametrize("changes", [{}, {"discriminator": ALIGNED}], ids=["resnet", "aligned"])
def test_the_first_step_in_float32_is_the_cpus(make_session: Callable[..., Session], changes: dict[str, Any]) -> None:
    """The finite difference too, of which TF32 would leave nothing; and so with the gradients, whose norms are among the metrics."""
    changes = {**changes, "precision": "float32", "penalty": {"name": "finite_difference", "interval": 1}}
    on_cpu, on_gpu = (make_session(**changes, device=device).run_step(0) for device in ("cpu", "cuda"))
    assert on_cpu.keys() == on_gpu.keys()
    assert on_cpu["Loss/r1_penalty"] > 0
    for name, value in on_cpu.items():
        assert on_gpu[name].device.type == "cuda"
        assert on_gpu[name].item() == pytest.approx(value.item(), rel=0.01, abs=1e-4), name


@pytest.mark.parametrize(
    "changes",
    [{}, {"accumulation": 2}, {"discriminator": ALIGNED, "optimizer": {"warmup_kimg": 0, "g_orthogonal": True}}, {"capture": "off"}],
    ids=["resnet", "accumulation", "aligned", "off"],
)
def test_captured_steps_are_eager_ones(make_session: Callable[..., Session], said: list[str], changes: dict[str, Any]) -> None:
    """Bit for bit where sums have an order; images and captions lie on the device."""
    ends, seen = [], []
    for paused in (False, True):
        session = make_session(**changes, device="cuda", deterministic=True, penalty={"interval": 2})
        captured = session.step.captured
        assert (captured is None) == (changes.get("capture") == "off")
        if captured is not None:
            captured.paused = paused
        seen.append([{name: value.item() for name, value in session.run_step(nimg).items()} for nimg in range(0, 24, 4)])
        ends.append([tensor.clone() for tensor in session.networks.G_ema.state_dict().values()])
        assert session.step.captured is captured, said
        assert session.step.resident.images is not None
        assert session.step.resident.text is not None
    assert seen[0] == seen[1]
    assert all(map(torch.equal, *ends))


def test_steps_are_captured_anew_when_all_graphs_are_gone(make_session: Callable[..., Session], said: list[str]) -> None:
    """As after a rollback: the pool of memory is gone with the graphs."""
    session = make_session(device="cuda", penalty={"interval": 2})
    captured = session.step.captured
    for _ in range(2):
        for nimg in (0, 4, 8):
            assert session.run_step(nimg)["Gradient/G"] > 0
        session.step.moved()
    assert session.step.captured is captured, said


def test_it_learns_what_the_cpu_learns(start: Callable[..., tuple[RunFolder, int | None]], tmp_path: Path) -> None:
    """Ten steps in bfloat16 end near the CPU's weights, farther from those of another seed."""
    ends = []
    for number, changes in enumerate(({"device": "cpu"}, {"device": "cuda"}, {"device": "cuda", "seed": 1})):
        folder, _ = start(outdir=tmp_path / str(number), precision="bf16", **changes)
        pipeline = Text2Image.load(folder.snapshots()[-1], device="cpu")
        ends.append(torch.cat([parameter.detach().flatten() for parameter in pipeline.generator.parameters()]))
    assert (ends[0] - ends[1]).norm() < 0.1 * (ends[0] - ends[2]).norm()


def test_a_snapshot_draws_alike_on_both(start: Callable[..., tuple[RunFolder, int | None]]) -> None:
    folder, _ = start(device="cuda")
    prompts = ["a red circle", "blue square on white"]
    first, second = (
        pixels(Text2Image.load(folder.snapshots()[-1], device=device).generate(prompts, seeds=[0, 1])) for device in ("cpu", "cuda")
    )
    assert np.abs(first - second).mean() < 2
    assert np.abs(first - first[::-1]).mean() > 0  # of pictures that are not all one


def pixels(pictures: list[Image.Image]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.stack([np.asarray(picture, np.float64) for picture in pictures])


def test_bench_says_which(small_config: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(small_config()), encoding="utf-8")
    result = CliRunner().invoke(command, ["bench", str(config), "--steps", "2", "--repeats", "1"])
    assert result.exit_code == 0, result.output
    assert "on cuda (NVIDIA" in result.output
    assert "img/s one operation at a time" in result.output
