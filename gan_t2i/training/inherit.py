"""A run that begins with the weights of another, to go on with other data or settings, or with larger pictures: growing (Karras et al. 2018,
arXiv 1710.10196) without a fade, the new layers being there at once."""

from pathlib import Path

from torch import Tensor, nn

from gan_t2i.checkpoint import read_tensors
from gan_t2i.errors import UsageError
from gan_t2i.training.state import read_progress
from gan_t2i.training.step import Networks

LEAST_SHARE = 0.5  # of a network's numbers; with fewer in common the two runs have little to do with each other


def begin_with(networks: Networks, state: Path) -> str:
    """Copy into G, D and G's average what the training state at `state` holds under the same name and of the same shape.

    Optimizers and the count of pictures begin anew. Returns a sentence for the user; raises `UsageError` where the networks have less than
    half in common, `GanT2IError` where the file is none.
    """
    nimg = read_progress(state).nimg
    tensors, _ = read_tensors(state)
    shares = {}
    for name in ("G", "D", "G_ema"):
        network = getattr(networks, name)
        prefix = name + "/"
        given = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        shares[name] = _copy(network, given)
        if shares[name] < LEAST_SHARE:
            raise UsageError(
                f"init {state.parent}: only {shares[name]:.0%} of {name} is in that run; give both the same generator and discriminator"
            )
    return f"begins with {shares['G']:.0%} of G and {shares['D']:.0%} of D from {state.parent} after {nimg:,} images"


def _copy(network: nn.Module, given: dict[str, Tensor]) -> float:
    """Take over what fits; returns its share of the network's numbers."""
    own = network.state_dict()
    fitting = {key: tensor for key, tensor in given.items() if key in own and own[key].shape == tensor.shape and tensor.isfinite().all()}
    network.load_state_dict(fitting, strict=False)
    for key, weight in network.named_parameters():
        if key not in fitting and key.endswith("to_rgb.weight"):
            # a new resolution adds nothing to the picture at first, so that G goes on drawing what it drew
            nn.init.zeros_(weight)
    return sum(tensor.numel() for tensor in fitting.values()) / sum(tensor.numel() for tensor in own.values())
