"""The plainest proof that the text matters: D's score of real pictures with their own caption, less the score with another's."""

import torch

from gan_t2i.models.base import Discriminator
from gan_t2i.text.batch import TextBatch


@torch.no_grad()
def match_gap(discriminator: Discriminator, images: torch.Tensor, text: TextBatch) -> float:
    """Mean of D(x, own caption) - D(x, the item before's caption) over pictures [N, 3, R, R] in [-1, 1] with N >= 2 different captions."""
    training = discriminator.training
    discriminator.eval()  # a look must leave no trace: spectral norms move with each forward pass in training mode
    condition = discriminator.text_head(text)
    features = discriminator.trunk(images)
    own = discriminator.head(features, condition)
    other = discriminator.head(features, condition[torch.arange(-1, len(images) - 1)])
    discriminator.train(training)
    return (own - other).mean().item()
