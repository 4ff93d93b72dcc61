"""A direct check that D uses the text: its logit of real pictures with their own caption, minus the logit with another's."""

import torch

from gan_t2i.models.base import Discriminator
from gan_t2i.text.batch import TextBatch


@torch.no_grad()
def match_gap(discriminator: Discriminator, images: torch.Tensor, text: TextBatch) -> float:
    """Mean of D(x, own caption) - D(x, caption of the item before) over pictures [N, 3, R, R] in [-1, 1] with N >= 2 different captions."""
    training = discriminator.training
    discriminator.eval()  # in training mode, a forward pass may change buffers
    condition = discriminator.text_head(text)
    features = discriminator.trunk(images)
    own = discriminator.head(features, condition)
    other = discriminator.head(features, condition[torch.arange(-1, len(images) - 1)])
    discriminator.train(training)
    return (own - other).mean().item()
