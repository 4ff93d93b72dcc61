"""A run that begins with the weights of another, to go on with other data or settings, or with larger pictures: growing (Karras et al. 2018,
arXiv 1710.10196) without a fade, the new layers being there at once."""

import re
from pathlib import Path

from torch import Tensor, nn

from gan_t2i.checkpoint import load_snapshot, read_tensors
from gan_t2i.core.errors import UsageError
from gan_t2i.models.base import Discriminator
from gan_t2i.models.residual_trunk import ResidualTrunk
from gan_t2i.runs import RunFolder, resolve_snapshot
from gan_t2i.training.networks import Networks
from gan_t2i.training.state import read_progress

LEAST_SHARE = 0.5  # of a network's numbers; with fewer in common the two runs have little to do with each other


def initial(name: str) -> Path:
    """The file that `name` means to begin with: a run folder's training state, or a snapshot; `UsageError` where there is neither."""
    state = RunFolder(Path(name)).state
    return state if state.is_file() else resolve_snapshot(name)


def warm_start(networks: Networks, source: Path) -> str:
    """Copy into G, D and G's average what the training state at `source` holds under the same name and of the same shape; of a snapshot, which
    holds G's average alone, both of G begin with that, and D begins anew.

    Optimizers and the count of pictures begin anew. Returns a sentence for the user; raises `UsageError` where the networks have less than
    half in common, `GanT2IError` where the file is none.
    """
    given, nimg = _given(source)
    shares = {}
    for name, tensors in given.items():
        shares[name] = _copy(getattr(networks, name), tensors)
        if shares[name] < LEAST_SHARE:
            raise UsageError(f"init {source}: only {shares[name]:.0%} of {name} is in it; give both the same generator and discriminator")
    of_d = f"{shares['D']:.0%} of D" if "D" in shares else "none of D (a snapshot has none)"
    return f"begins with {shares['G']:.0%} of G and {of_d} from {source} after {nimg:,} images"


def _given(source: Path) -> tuple[dict[str, dict[str, Tensor]], int]:
    """The tensors for each network, and the number of pictures that they have seen."""
    if source.name != RunFolder(source.parent).state.name:
        G, info = load_snapshot(source)
        return dict.fromkeys(("G", "G_ema"), G.state_dict()), info.nimg
    nimg = read_progress(source).nimg
    tensors, _ = read_tensors(source)
    return {
        name: {key.removeprefix(f"{name}/"): tensor for key, tensor in tensors.items() if key.startswith(f"{name}/")}
        for name in ("G", "D", "G_ema")
    }, nimg


def _copy(network: nn.Module, given: dict[str, Tensor]) -> float:
    """Take over what fits; returns its share of the network's numbers."""
    own = network.state_dict()
    fitting = {key: tensor for key, tensor in given.items() if key in own and own[key].shape == tensor.shape and tensor.isfinite().all()}
    network.load_state_dict(fitting, strict=False)
    for key, weight in network.named_parameters():
        if key not in fitting and is_output_layer(network, key):
            nn.init.zeros_(weight)
    return sum(tensor.numel() for tensor in fitting.values()) / sum(tensor.numel() for tensor in own.values())


def is_output_layer(network: nn.Module, key: str) -> bool:
    """Whether a new resolution is heard through the weight `key`: silent at first, it lets G go on drawing, and D judging, as they did."""
    if isinstance(network, Discriminator):
        grown = isinstance(network.trunk, ResidualTrunk) and len(network.trunk.input_resolutions) > 1
        return grown and re.fullmatch(r"trunk\.down\d+\.(conv1|skip)\.weight", key) is not None
    return key.endswith("to_rgb.weight")
