"""What a step does on the device can be captured: it looks at no number there, copies nothing to it, and has no shape that data decide.

On the meta device, which holds no numbers, so every recipe runs at its own size.
"""

import contextlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gan_t2i import registry
from gan_t2i.core import recipes
from gan_t2i.core.config import read_yaml
from gan_t2i.data.batches.sampler import Batch
from gan_t2i.losses.inputs import StepInputs
from gan_t2i.losses.term import RunParts
from gan_t2i.ops.resample import _kernel
from gan_t2i.text.batch import TextBatch
from gan_t2i.training.capture import map_tensors
from gan_t2i.training.config import TrainConfig
from gan_t2i.training.networks import build_networks, latent_interface
from gan_t2i.training.resident import Resident
from gan_t2i.training.step import TrainStep

META = torch.device("meta")
TOKENS, WIDTH = 6, 384
REFUSED = ("nonzero", "unique", "masked_select", "item", "local_scalar_dense", "is_nonzero", "equal", "bincount")
LITERALS = (torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy, Tensor.new_tensor)


class OnDeviceAlone(TorchDispatchMode):
    """Refuses operations that a graph cannot replay: those that read a tensor elsewhere, make one, or look at numbers. Counts the others."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__.removeprefix("_").startswith(REFUSED):
            raise AssertionError(f"{func} looks at numbers on the device")
        result = func(*args, **(kwargs or {}))
        if elsewhere := {x.device for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)} - {META}:
            raise AssertionError(f"{func} takes or makes a tensor on {elsewhere}")
        self.count += 1
        return result


class NoLiterals(TorchFunctionMode):
    """Refuses tensors made of Python's numbers, which come from the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in LITERALS:
            raise AssertionError(f"{func} brings numbers from the CPU")
        return func(*args, **(kwargs or {}))


class NoAdam:
    """In place of torch's fused Adam, which knows no meta device."""

    def __init__(self) -> None:
        self.param_groups = [{"lr": 0.0}]
        self.state: dict[Tensor, dict[str, Tensor]] = {}

    def step(self) -> None: ...

    def zero_grad(self, set_to_none: bool = True) -> None: ...


@pytest.fixture(autouse=True)
def _meta_knows_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    autocast = torch.autocast
    monkeypatch.setattr(torch, "autocast", lambda kind, **options: contextlib.nullcontext() if kind == "meta" else autocast(kind, **options))
    _kernel(META)  # the constant of resampling is made once


def step_of(config: TrainConfig, resident: Resident | None = None) -> TrainStep:
    """Return the step of a config on the meta device, with the captioner and the layout predictor as they are before they learn."""
    with META:
        autoencoder = registry.build(
            "autoencoder", config.autoencoder.name, config.autoencoder.params, resolution=config.resolution, channels=config.data.channels
        )
        interface = {**latent_interface(config, autoencoder), "text_width": WIDTH, "max_tokens": TOKENS}
        networks = build_networks(config.model_copy(update={"device": "meta"}), interface, autoencoder, META)
    networks.g_optimizer, networks.d_optimizer = NoAdam(), NoAdam()  # type: ignore[assignment]
    captions = [f"a red circle, number {number}" for number in range(64)]
    places = {"train": torch.arange(64), "train_caption_ids": captions, "caption_ids": [(number,) for number in range(64)]}
    dataset: Any = SimpleNamespace(captions=captions, resolution=config.resolution, **places)
    where: Any = (META, config.seed, "float32", autoencoder, networks.G, networks.G_ema, config.loss)
    parts = RunParts(dataset, None, None, *where)  # type: ignore[arg-type]
    terms = [term for term in config.build_terms().values() if term.active]
    for term in terms:
        term.prepare(parts, pretrained=False)
    step = TrainStep(networks, terms, config, META, resident or Resident(), TOKENS)
    # as captured ones are, so that nothing depends on the batch; nothing is captured here
    step.capture_with(SimpleNamespace())  # type: ignore[arg-type]
    return step


def inputs_of(step: TrainStep, nimg: int) -> list[StepInputs]:
    """Return the inputs of a step, on the meta device."""
    config, autoencoder = step.config, step.networks.autoencoder
    n, side = config.batch, config.resolution // autoencoder.factor
    if step.resident.images is not None:
        images = torch.arange(n)
    elif autoencoder.is_identity:
        images = torch.zeros(n, config.data.channels, side, side, dtype=torch.uint8)
    else:
        images = torch.zeros(n, autoencoder.latent_channels, side, side, dtype=torch.float16)
    kinds = config.terms["mismatch"]["negatives"]
    negatives = torch.randint(64, (n, len(kinds)), generator=torch.Generator().manual_seed(nimg))
    shared = torch.arange(n) % 3 < nimg % 3
    batch = Batch(images, torch.arange(n) % 64, negatives, torch.ones(n, len(kinds), dtype=torch.bool), shared)

    def encode(ids: Tensor) -> TextBatch:
        return TextBatch(torch.zeros(len(ids), TOKENS, WIDTH), torch.ones(len(ids), TOKENS, dtype=torch.bool), torch.zeros(len(ids), WIDTH))

    parts: list[StepInputs] = map_tensors(lambda tensor: torch.empty_like(tensor, device=META), step.inputs(batch, encode, nimg))
    return parts


def run(step: TrainStep, nimg: int) -> tuple[int, set[str]]:
    """Run the part of a step on the device; returns the number of operations and the names of the metrics."""
    config = step.config
    inputs = inputs_of(step, nimg)
    with NoLiterals(), OnDeviceAlone() as mode:
        metrics = step.gradients(inputs, config.penalty.is_due(nimg // config.batch)) | step.update()
    return mode.count, set(metrics)


def draw(step: TrainStep) -> tuple[int, ...]:
    """Draw a picture as a graph would; returns its shape."""
    with META:
        text = TextBatch(torch.zeros(1, TOKENS, WIDTH), torch.ones(1, TOKENS, dtype=torch.bool), torch.zeros(1, WIDTH))
        z, psi = torch.zeros(1, step.networks.images.z_width), torch.ones(())
    with torch.no_grad(), NoLiterals(), OnDeviceAlone():
        return tuple(step.networks.images.eval()(z, text, psi).shape)


def small(name: str, **changes: Any) -> TrainConfig:
    """Return a recipe with a batch of two; widths cost nothing here."""
    return TrainConfig.parse({**read_yaml(recipes.find(name)), "batch": 2, "accumulation": 1, **changes})


@pytest.mark.parametrize("name", recipes.names())
def test_the_step_and_the_pictures_of_every_recipe_can_be_captured(name: str) -> None:
    step = step_of(small(name))
    batch = step.config.batch
    with_penalty, named = run(step, 0)
    without, fewer = run(step, batch)
    assert with_penalty > without > 100
    assert named - fewer == {"Loss/r1_penalty", "Loss/r2_penalty"}
    assert draw(step) == (1, step.config.data.channels, step.config.resolution, step.config.resolution)


@pytest.mark.parametrize(
    "changes",
    [
        {"penalty": {"name": "finite_difference"}},
        {"terms": {"reconstruction": {"weight": 1, "candidates": 3}}, "optimizer": {"g_orthogonal": True}},
        {"data": {"source": "x", "alpha": True}, "checkpointing": True, "augment": {"saturation": 0.5, "cutout": 0.2, "brightness": 0.1}},
        {"accumulation": 2, "loss": "hinge", "discriminator": {"name": "transformer"}, "generator": {"name": "transformer"}},
    ],
    ids=["finite difference", "nearest latent", "alpha, checkpointing, colours", "transformers in two parts"],
)
def test_other_settings_can_be_captured(changes: dict[str, Any]) -> None:
    step = step_of(small("emoji64_resnet", resolution=16, **changes))
    assert run(step, 0)[0] > 100


def test_a_set_on_the_device_is_gathered_there() -> None:
    with META:
        text = TextBatch(torch.zeros(64, TOKENS, WIDTH, dtype=torch.float16), torch.zeros(64, TOKENS, dtype=torch.bool), torch.zeros(64, WIDTH))
        images = torch.zeros(64, 3, 64, 64, dtype=torch.uint8)
    step = step_of(small("emoji64_resnet"), Resident(images, text))
    assert {inputs_of(step, 0)[0].images.dtype, inputs_of(step, 0)[0].text.dtype} == {torch.int64}  # type: ignore[union-attr]
    assert run(step, 0)[0] > 100


@pytest.mark.parametrize(
    "slip",
    [
        lambda x: x.item(),
        lambda x: bool(x > 0),
        lambda x: x[None].unique(),
        lambda x: x[None][x[None] > 0],
        lambda x: x[None].nonzero(),
        lambda x: torch.where(x > 0),
        lambda x: x + torch.tensor([1.0], device=META),
        lambda x: x[None][torch.arange(1)],
        lambda x: torch.zeros(()).to(META),
        lambda x: x * torch.ones(()),
        lambda x: x[None].repeat_interleave(torch.ones(1, dtype=torch.long, device=META)),
    ],
    ids=["item", "bool", "unique", "mask", "nonzero", "where", "literal", "arange", "to", "constant", "repeats"],
)
def test_a_slip_is_found(slip: Callable[[Tensor], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    step = step_of(small("quickstart"))
    update = step.update
    monkeypatch.setattr(step, "update", lambda: update() | {"slip": slip(step.ema_share)})
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError)):
        run(step, 0)
