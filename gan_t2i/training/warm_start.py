"""Warm start: a run that takes its first weights from another, for other data, other settings or larger images.

Larger images are progressive growing (Karras et al. 2018, arXiv 1710.10196) without a fade: the new layers are there at once.
"""

import re
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from gan_t2i.checkpoint import below, load_snapshot, read_info, read_tensors
from gan_t2i.core import recipes
from gan_t2i.core.config import read_yaml
from gan_t2i.core.errors import UsageError
from gan_t2i.models.base import Discriminator
from gan_t2i.models.latent_generator import LatentGenerator
from gan_t2i.models.residual_trunk import ResidualTrunk
from gan_t2i.runs import PRETRAINED, RunFolder, resolve_snapshot, run_of
from gan_t2i.training.networks import Networks
from gan_t2i.training.state import DATA_SET, read_fingerprints, read_progress

KEPT = ("alpha", "recolour", "recolour_share")  # of the settings of the data
MIN_SHARE = 0.5  # of a network's weights; with fewer in common the two runs have little to do with each other


def init_source(name: str) -> Path:
    """Return the file that `name` stands for: a run folder's training state, or a snapshot; raises `UsageError` where there is neither."""
    state = RunFolder(Path(name)).state
    return state if state.is_file() else resolve_snapshot(name)


def data_fingerprint(source: Path) -> str | None:
    """Return the fingerprint of the pictures that a training state or snapshot was trained on; None where it has none."""
    is_state = source.name == RunFolder(source.parent).state.name
    return read_fingerprints(source).get(DATA_SET) if is_state else read_info(source).data_fingerprint


def settings_of(name: str) -> dict[str, Any]:
    """Return the config values of what a run is to start from, for other data: those of its run, or of the recipe of a packaged model.

    Raises `UsageError` for a snapshot whose config is not there.
    """
    source = init_source(name)
    run = RunFolder(source.parent) if source.name == RunFolder(source.parent).state.name else run_of(source)
    if run is None and source.parent != PRETRAINED:
        raise UsageError(f"init {name}: a snapshot outside of a run folder does not say how it was trained; give --preset or --config")
    values = read_yaml(run.config if run is not None else recipes.find(source.stem))
    data = {key: value for key, value in values.get("data", {}).items() if key in KEPT}
    return {**{key: value for key, value in values.items() if key not in ("init", "seed", "device")}, "data": data}


def warm_start(networks: Networks, source: Path) -> str:
    """Copy weights of the same name and shape from the training state at `source` into G, D and G's average.

    A snapshot holds G's average alone, so G and its average start from that, and D starts fresh; so do optimizers and the image count.
    Returns a sentence for the user. Raises `UsageError` where less than half of a network is in the file, `GanT2IError` where the file
    cannot be read.
    """
    given, nimg = _given(source)
    shares = {}
    for name, tensors in given.items():
        shares[name] = _copy(getattr(networks, name), tensors)
        if shares[name] < MIN_SHARE:
            raise UsageError(f"init {source}: only {shares[name]:.0%} of {name} is in it; give both runs the same generator and discriminator")
    of_d = f"{shares['D']:.0%} of D" if "D" in shares else "none of D (a snapshot has none)"
    return f"warm start with {shares['G']:.0%} of G and {of_d} from {source} after {nimg:,} images"


def _given(source: Path) -> tuple[dict[str, dict[str, Tensor]], int]:
    """Return the tensors for each network, and the number of images that they were trained on."""
    if source.name != RunFolder(source.parent).state.name:
        G, info = load_snapshot(source)
        own = G.G if isinstance(G, LatentGenerator) else G
        return dict.fromkeys(("G", "G_ema"), own.state_dict()), info.nimg
    nimg = read_progress(source).nimg
    tensors, _ = read_tensors(source)
    return {name: below(tensors, name) for name in ("G", "D", "G_ema")}, nimg


def _copy(network: nn.Module, given: dict[str, Tensor]) -> float:
    """Copy the tensors that fit, and return their share of the network's weights."""
    own = network.state_dict()
    fitting = {key: tensor for key, tensor in given.items() if key in own and own[key].shape == tensor.shape and tensor.isfinite().all()}
    network.load_state_dict(fitting, strict=False)
    for key, weight in network.named_parameters():
        if key not in fitting and is_output_layer(network, key):
            nn.init.zeros_(weight)
    return sum(tensor.numel() for tensor in fitting.values()) / sum(tensor.numel() for tensor in own.values())


def is_output_layer(network: nn.Module, key: str) -> bool:
    """True if a new resolution takes effect through the weight `key`: starting at zero, it leaves G and D as they were."""
    if isinstance(network, Discriminator):
        grown = isinstance(network.trunk, ResidualTrunk) and len(network.trunk.input_resolutions) > 1
        return grown and re.fullmatch(r"trunk\.down\d+\.(conv1|skip)\.weight", key) is not None
    return key.endswith("to_rgb.weight")
