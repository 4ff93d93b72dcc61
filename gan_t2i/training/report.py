"""Records of a run: TensorBoard, stats.jsonl, and a progress bar."""

import contextlib
import json
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from torchvision.utils import make_grid
from tqdm import tqdm

from gan_t2i.core.config import StrictConfig, flatten
from gan_t2i.core.distributed import average
from gan_t2i.core.files import atomic_file
from gan_t2i.core.images import composite_on_grey_uint8, to_pictures, to_uint8
from gan_t2i.core.log import training_bar
from gan_t2i.core.phases import phase
from gan_t2i.core.runtime import peak_memory_gib
from gan_t2i.pretraining.autoencoder import ReadyAutoencoder
from gan_t2i.runs import RunFolder


class Report:
    """Collects the metrics of steps and writes their means at every tick. The step of all records is nimg, images shown.

    `nimg` images of `total` have been shown in the game so far, and `shown` in all; later records of an earlier attempt are purged.
    """

    def __init__(self, folder: RunFolder, config: StrictConfig, device: torch.device, nimg: int, total: int, shown: int) -> None:
        self.folder = folder
        self.device = device
        self.writer = self._open(shown)
        self.bar = training_bar(None, total, nimg)
        self._sums: defaultdict[str, list[Tensor]] = defaultdict(list)
        self._time, self._nimg = time.perf_counter(), nimg
        if not nimg:
            self._write_config(config)

    def _open(self, nimg: int) -> SummaryWriter:
        if self.folder.stats.exists():
            kept = [record for record in self.folder.records() if record["nimg"] <= nimg]
            with atomic_file(self.folder.stats) as temporary:
                temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        # Events after nimg come from an attempt that went past its last state; all of them where it died before the first state.
        return SummaryWriter(str(self.folder.path), purge_step=nimg + 1 if nimg else 0)

    def rewind(self, nimg: int, reason: str) -> None:
        """Remove the records after `nimg`, to which the run rolled back for a `reason`."""
        self.writer.close()
        self.writer = self._open(nimg)
        self.writer.add_text("Monitor/rollback", reason, nimg)
        self.bar.n = nimg
        self.bar.refresh()
        self.pause(nimg)

    @phase("logging")
    def add(self, metrics: Mapping[str, Tensor], batch: int) -> None:
        """Add one step's metrics; nothing is read back from the device here."""
        for name, value in metrics.items():
            self._sums[name].append(value)
        self.bar.update(batch)

    def means(self) -> dict[str, float]:
        """Return the means over all processes of everything added since the last call; a value that is not finite shows in all of them."""
        own = {name: torch.stack(values).float().mean().item() for name, values in self._sums.items()}
        self._sums.clear()
        values = torch.tensor(list(own.values()), dtype=torch.float64)
        average([values])
        return dict(zip(own, values.tolist(), strict=True))

    def tick(self, nimg: int, numbers: Mapping[str, float]) -> None:
        """Write metrics at `nimg`, with time and memory."""
        now = time.perf_counter()
        rate = (nimg - self._nimg) / max(now - self._time, 1e-9)
        values = {
            **numbers,
            "Progress/kimg": nimg / 1000,
            "Timing/img_per_sec": rate,
            "Timing/sec_per_kimg": 1000 / rate if rate else 0.0,
            "Resources/peak_memory_gib": peak_memory_gib(self.device),
        }
        self.scalars(values, nimg)
        self.bar.set_postfix_str(f"G {values.get('Loss/G/loss', 0):.2f} D {values.get('Loss/D/loss', 0):.2f}", refresh=False)
        self._time, self._nimg = now, nimg

    def scalars(self, values: Mapping[str, float], nimg: int) -> None:
        """Write measurements, in a line of their own."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, nimg)
        with self.folder.stats.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"nimg": nimg, **values}) + "\n")

    def pause(self, nimg: int) -> None:
        """Leave the time since the last tick out of the speed, after work other than training."""
        self._time, self._nimg = time.perf_counter(), nimg

    def image(self, tag: str, image: Image.Image, nimg: int) -> None:
        """Show an image in TensorBoard."""
        self.writer.add_image(tag, np.asarray(image), nimg, dataformats="HWC")

    def real_images(self, images: Tensor, nimg: int) -> None:
        """Show uint8 images [N, C, R, R] of the data set, for comparison with generated ones."""
        self.writer.add_image("Samples/real", make_grid(composite_on_grey_uint8(images)), nimg)

    def autoencoder(self, ready: ReadyAutoencoder, images: Tensor, rebuilt: Tensor) -> None:
        """Show the losses of the autoencoder's training, its PSNR, and uint8 images [N, C, R, R] above rebuilt ones in [-1, 1]."""
        for nimg, loss in ready.losses:
            self.writer.add_scalar("Autoencoder/loss", loss, nimg)
        if ready.psnr is not None:
            self.writer.add_scalar("Autoencoder/heldout_psnr", ready.psnr, 0)
        both = torch.cat([composite_on_grey_uint8(images), to_uint8(to_pictures(rebuilt))])
        self.writer.add_image("Autoencoder/real_above_rebuilt", make_grid(both, nrow=len(images)), 0)

    def close(self) -> None:
        """Flush everything."""
        self.bar.close()
        self.writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # on a full disk closing fails too, and must not hide the first error
        with contextlib.suppress(OSError) if error else contextlib.nullcontext():
            self.close()

    def _write_config(self, config: StrictConfig) -> None:
        self.writer.add_text("config", "    " + config.model_dump_json(indent=2).replace("\n", "\n    "), 0)
        # add_hparams would open a second event file, whose Progress/kimg at 0 is read after this file's later ones
        values = flatten(config.model_dump(mode="json"))
        settings = {key: value if isinstance(value, bool | str | float | int) else str(value) for key, value in values.items()}
        for summary in hparams(settings, {"Progress/kimg": 0.0}):
            self.writer._get_file_writer().add_summary(summary, 0)


class SilentReport(Report):
    """Report of a process other than the first: it adds to the means, shows nothing and writes nothing."""

    def __init__(self, folder: RunFolder, config: StrictConfig, device: torch.device, nimg: int, total: int, shown: int) -> None:
        self._sums = defaultdict(list)
        self.bar = tqdm(disable=True)

    def pause(self, nimg: int) -> None:
        pass

    def rewind(self, nimg: int, reason: str) -> None:
        pass

    def close(self) -> None:
        pass
