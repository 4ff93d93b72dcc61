"""Pictures as CUDA graphs (`core.graphs`): one for each number of tokens, as padding would change bits. Nothing in them is random."""

import logging
import threading
from collections import Counter
from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
from PIL import Image
from torch import Tensor

from gan_t2i.core.graphs import Backend, CudaGraphs, reason_of
from gan_t2i.core.images import to_pictures
from gan_t2i.models.base import Generator
from gan_t2i.text.batch import TextBatch

log = logging.getLogger(__name__)

Forward = Callable[[Tensor, TextBatch, float], Tensor]

BACKENDS: dict[str, Callable[[torch.device], Backend]] = {"cuda": CudaGraphs}
CAPTURE_AFTER = 2  # pictures of a length: a single one would not pay for the capture, and these have warmed the libraries up


class CapturedGenerator:
    """The forward passes of a generator, valid until `moved`. The generator is not kept, so that it and its graphs are freed together."""

    def __init__(self, generator: Generator, backend: Backend) -> None:
        self._backend: Backend | None = backend
        self._graphs: dict[int, Forward] = {}
        self._drawn: Counter[int] = Counter()
        # modules register all that they have in these dictionaries; walking through the modules for each picture would take a millisecond
        _, *self._parts = modules = list(generator.modules())  # kept, so that no other module gets the id of one
        self._members = [members for module in modules for members in (module._parameters, module._buffers, module._modules)]
        self._hooks = [hooks for module in modules for hooks in (module._forward_pre_hooks, module._forward_hooks)]
        self._places = self._look()

    def _look(self) -> list[int]:
        return [x.data_ptr() if isinstance(x, Tensor) else id(x) for members in self._members for x in members.values()]

    def moved(self) -> bool:
        """Return True if a weight, buffer or module was moved or replaced; changes in place matter to no graph."""
        return self._look() != self._places

    def draw(self, generator: Generator, z: Tensor, text: TextBatch, truncation_psi: float) -> Tensor:
        """Return the image [1, C, R, R] of one z and one prompt; it is replayed where that can be done and no hook is on a module."""
        length = text.tokens.shape[1]
        if any(self._hooks):
            return generator(z, text, truncation_psi)
        if length in self._graphs:
            return self._graphs[length](z, text, truncation_psi)
        image = generator(z, text, truncation_psi)
        self._drawn[length] += 1
        if self._backend is not None and self._drawn[length] == CAPTURE_AFTER:
            try:
                forward = capture(self._backend, generator, z, text)
                if not torch.equal(forward(z, text, truncation_psi), image):
                    raise RuntimeError("a replay gave another picture than the generator itself")
                self._graphs[length] = forward
            except RuntimeError as error:
                log.info(f"pictures are drawn one operation at a time, as they cannot be captured: {reason_of(error)}")
                self._backend = None
                self._graphs.clear()
        return image


def capture(backend: Backend, generator: Generator, z: Tensor, text: TextBatch) -> Forward:
    """Return the captured forward pass for prompts as long as `text`; raises RuntimeError where it cannot be captured."""
    own_z, own, psi = z.clone(), TextBatch(text.tokens.clone(), text.mask.clone(), text.pooled.clone()), torch.ones((), device=z.device)
    replay = backend.capture(lambda: {"image": generator(own_z, own, psi)})

    def forward(z: Tensor, text: TextBatch, truncation_psi: float) -> Tensor:
        psi.fill_(truncation_psi)
        for place, value in ((own_z, z), (own.tokens, text.tokens), (own.mask, text.mask), (own.pooled, text.pooled)):
            place.copy_(value)
        return replay()["image"]

    return forward


_captured: WeakKeyDictionary[Generator, CapturedGenerator] = WeakKeyDictionary()
_lock = threading.Lock()  # a process captures one graph at a time, and the pictures of a length share their inputs


def draw_picture(generator: Generator, z: Tensor, text: TextBatch, truncation_psi: float) -> Image.Image:
    """Return the picture of one z [1, Z] and one encoded prompt, both on the generator's device.

    A GPU replays the forward pass from the third picture of a length on. Where that cannot be done, or gives other bits, the log says so, and
    the generator draws all pictures itself.
    """
    if (make := BACKENDS.get(z.device.type)) is None:
        _captured.pop(generator, None)  # of the GPU that it was on
        return to_pictures(generator(z, text, truncation_psi))[0]
    with _lock:  # until the picture is on the CPU: another thread may draw on another stream
        captured = _captured.get(generator)
        if captured is None or captured.moved():
            captured = _captured[generator] = CapturedGenerator(generator, make(z.device))
        return to_pictures(captured.draw(generator, z, text, truncation_psi))[0]
