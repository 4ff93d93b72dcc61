"""Transparency from files to files: packed with alpha, composited on random colours for D, generated and saved as transparent PNGs."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image, ImageDraw

from gan_t2i.checkpoint import load_snapshot, read_info, save_snapshot
from gan_t2i.cli.main import command
from gan_t2i.core.errors import UsageError
from gan_t2i.core.images import composite, from_uint8
from gan_t2i.data.decode import load_image
from gan_t2i.data.packing import PackedDataset, load_dataset, pack
from gan_t2i.data.settings import DataSettings
from gan_t2i.losses.inputs import StepNoise
from gan_t2i.ops.augment import AugmentConfig
from gan_t2i.runs import RunFolder
from gan_t2i.sampling import Text2Image, generate_image
from gan_t2i.training.config import TrainConfig
from gan_t2i.training.run import run_training
from gan_t2i.training.session import prepare

ALPHA = DataSettings(alpha=True)


@pytest.fixture(scope="module")
def icons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write eight half-transparent discs, with hidden green where they are transparent."""
    folder = tmp_path_factory.mktemp("icons")
    lines = []
    for index, colour in enumerate(("red", "orange", "blue", "yellow", "purple", "black", "white", "pink")):
        mask = Image.new("L", (24, 24))
        ImageDraw.Draw(mask).ellipse((4, 4, 19, 19), fill=(255, 128)[index % 2])
        picture = Image.new("RGB", (24, 24), (0, 255, 0))
        picture.paste(Image.new("RGB", (24, 24), colour), (0, 0), mask.point([0] + [255] * 255))
        picture.putalpha(mask)
        picture.save(folder / f"{colour}.png")
        split = "heldout" if colour in ("orange", "black") else "train"
        lines.append(json.dumps({"file_name": f"{colour}.png", "text": f"a {colour} disc", "split": split}))
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(small_config: Callable[..., Any], icons: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Train on the icons."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GAN_T2I_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        config = TrainConfig.parse(small_config(data={"source": str(icons), "alpha": True}))
        return run_training(config, tmp_path_factory.mktemp("alpha"), resume="never", description="icons")[0]


def distance(left: Any, right: Any) -> int:
    return int(np.abs(np.asarray(left).astype(int) - np.asarray(right).astype(int)).max())


@pytest.mark.parametrize("background", ["white", "black", "#3080c0"])
def test_compositing_on_a_colour_equals_pillows(icons: Path, tmp_path: Path, background: str) -> None:
    """At the files' own size, so without resizing."""
    for file in icons.glob("*.png"):
        Image.open(file).resize((16, 16), Image.Resampling.NEAREST).save(tmp_path / file.name)
        (tmp_path / f"{file.stem}.txt").write_text(file.stem, encoding="utf-8")
    packed = pack(tmp_path, tmp_path / "packed", 16, ALPHA, progress=False)
    plain = pack(tmp_path, tmp_path / "plain", 16, DataSettings(background=background), progress=False)
    colour = torch.tensor(Image.new("RGB", (1, 1), background).getpixel((0, 0))) / 255
    composited = composite(from_uint8(packed.gather_packed(range(8))), colour.expand(8, 3))
    assert distance((composited + 1) * 127.5, plain.gather(range(8))) <= 1
    opaque = packed.images[:, 3] == 255
    assert opaque.any()
    expected = from_uint8(plain.gather(range(8))).permute(0, 2, 3, 1)[opaque]
    assert torch.equal(composited.permute(0, 2, 3, 1)[opaque], expected)


def test_hidden_colours_do_not_bleed_into_a_resized_picture(icons: Path, tmp_path: Path) -> None:
    dataset = pack(icons, tmp_path / "packed", 16, ALPHA, progress=False)
    assert dataset.images.shape == (8, 4, 16, 16)
    (red,) = (dataset.images[item] for item, ids in enumerate(dataset.caption_ids) if dataset.captions[ids[0]] == "a red disc")
    assert red[1].max() == 0  # the edge is red, and none of the hidden green
    assert 0 < red[3, 8, 3] < 255
    assert (dataset.images[:, :3] <= dataset.images[:, 3:]).all()
    again = load_image(dataset.records()[0].image, 16, ALPHA)  # what inspection sees
    assert distance(again, dataset.images[0]) <= 1


def test_alpha_gives_another_data_set(icons: Path, tmp_path: Path) -> None:
    with_alpha, without = (load_dataset(icons, 16, settings, progress=False) for settings in (ALPHA, DataSettings()))
    assert with_alpha.folder != without.folder
    assert with_alpha.fingerprint != without.fingerprint
    assert (with_alpha.channels, without.channels) == (4, 3)
    assert PackedDataset.open(with_alpha.folder).gather([0]).shape == without.gather([0]).shape == (1, 3, 16, 16)
    with pytest.raises(UsageError, match=r"data.alpha must be true: .* is packed with transparency"):
        load_dataset(with_alpha.folder, 16)
    with pytest.raises(UsageError, match=r"data.alpha must be false: .* is packed without transparency"):
        load_dataset(without.folder, 16, ALPHA)


def test_borders_are_transparent_too(tmp_path: Path) -> None:
    Image.new("RGBA", (32, 16), (255, 0, 0, 255)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a red bar", encoding="utf-8")
    dataset = pack(tmp_path, tmp_path / "packed", 16, DataSettings(alpha=True, crop="pad"), progress=False)
    assert dataset.images[0, 3, :, 8].tolist() == [0] * 4 + [255] * 8 + [0] * 4
    assert dataset.images[0, 0, 0, 0] == 0


def test_a_set_without_transparency_gets_a_note(pictures: Path, icons: Path, tmp_path: Path) -> None:
    note = "no picture has a transparent pixel, so alpha adds nothing: leave it out"
    assert note in pack(pictures, tmp_path / "opaque", 16, ALPHA, progress=False).report.notes
    assert note not in pack(icons, tmp_path / "clear", 16, ALPHA, progress=False).report.notes
    report = pack(icons, tmp_path / "flat", 16, DataSettings(background="#ffeecc"), progress=False).report
    assert "transparent: 8 of 8 pictures; drawn on #ffeecc; --alpha keeps it" in report.notes


def test_real_and_fake_of_a_row_have_the_same_background(
    small_config: Callable[..., Any], icons: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D sees the background where pictures are transparent: of a row the same for real and fake, and another in each step."""
    session = prepare(TrainConfig.parse(small_config(data={"source": str(icons), "alpha": True})))
    seen: list[torch.Tensor] = []
    session.networks.D.trunk.register_forward_pre_hook(lambda trunk, inputs: seen.append(inputs[0].detach()))
    nothing = -torch.ones(4, 4, 16, 16)
    monkeypatch.setattr(type(session.networks.G), "forward", lambda G, z, text: nothing + 0 * sum(p.sum() for p in G.parameters()))
    for nimg in (4, 8):
        session.step(session.sampler.batch(nimg, 4), session.cache.gather, nimg)
    real, fake, real_next, _ = seen[:4]
    assert real.shape == (4, 3, 16, 16)
    assert torch.equal(real[:, :, 0, 0], fake[:, :, 0, 0])
    assert torch.equal(fake, fake[:, :, :1, :1].expand_as(fake))
    assert len(torch.cat([real[:, :, 0, 0], real_next[:, :, 0, 0]]).unique(dim=0)) == 8
    assert ((real >= -1) & (real <= 1)).all()


def test_the_background_of_a_row_does_not_depend_on_its_micro_batch() -> None:
    whole = StepNoise.draw(0, 12, 4, 8, AugmentConfig())
    rows = torch.tensor([3, 1])
    assert torch.equal(whole[rows].background, whole.background[rows])
    assert ((whole.background >= 0) & (whole.background < 1)).all()
    assert not torch.equal(whole.background, StepNoise.draw(1, 12, 4, 8, AugmentConfig()).background)


def test_a_gradient_reaches_every_channel_of_a_fake() -> None:
    fake = torch.zeros(2, 4, 2, 2, requires_grad=True)
    weights = torch.tensor([1.0, 2.0, 4.0])[:, None, None]
    (composite(fake, torch.tensor([[0.5, 0.25, 1.0], [0.0, 0.0, 0.0]])) * weights).sum().backward()
    assert fake.grad is not None
    assert fake.grad[0, :, 0, 0].tolist() == [1, 2, 4, -(0.5 + 0.5 + 4.0)]
    assert fake.grad[1, 3].abs().max() == 0  # black shows no alpha: it takes other colours


def test_a_run_generates_transparent_pngs(run: RunFolder, tmp_path: Path) -> None:
    info = read_info(run.snapshots()[-1])
    assert info.generator.interface["channels"] == 4
    result = CliRunner().invoke(command, ["sample", str(run.path), "-p", "a red disc", "--outdir", str(tmp_path), "--seeds", "0-1"])
    assert result.exit_code == 0, result.output
    for seed, file in enumerate(sorted(tmp_path.glob("*.png"))):
        with Image.open(file) as saved:
            assert saved.mode == "RGBA"
            low, high = saved.getchannel("A").getextrema()
            assert low < high
            assert distance(saved, generate_image("a red disc", seed=seed, model=run.path)) == 0
    assert len(list(tmp_path.glob("*.png"))) == 2
    with Image.open(run.grid(40)) as grid:
        assert grid.mode == "RGB"
    info = CliRunner().invoke(command, ["info", str(run.path)])
    assert "16 px, RGBA" in info.output


def test_a_snapshot_from_before_alpha_still_works(trained: RunFolder, tmp_path: Path) -> None:
    G, info = load_snapshot(trained.snapshots()[-1])
    assert info.generator.interface["channels"] == 3
    before = {key: value for key, value in info.generator.interface.items() if key != "channels"}
    save_snapshot(tmp_path / "old.safetensors", G, replace(info, generator=replace(info.generator, interface=before)))
    old, new = (
        Text2Image.load(str(path), device="cpu").generate("a red circle") for path in (tmp_path / "old.safetensors", trained.snapshots()[-1])
    )
    assert old[0].mode == "RGB"
    assert old[0].tobytes() == new[0].tobytes()
