"""Layout: where in an image the objects named by a caption are. A localizer learns it from real images, a predictor from the caption alone.

That "a red star left of a blue ring" puts the star on the left follows from the relation and the order of the nouns together. Either alone
carries no information, and a generator that has learned neither is not pushed towards either. Locating a word in an image needs no
understanding of the sentence, though: it is learned from which words images have in common (class activation maps, Zhou et al. 2016, arXiv
1512.04150; multiple instance learning, Oquab et al. 2015), and the maps then are direct targets for a network that reads the sentence.
N batch, L tokens, V vocabulary, C channels, P = S * S positions, E width of the encoder.
"""

import math

import torch
from torch import Tensor, nn

from gan_t2i.models.residual_trunk import HEAD_RESOLUTION, ResidualTrunk
from gan_t2i.models.text_head import TextHead, TextHeadConfig
from gan_t2i.ops.layers import channels_at, linear, to_sequence
from gan_t2i.text.batch import TextBatch

SIDE = HEAD_RESOLUTION  # S
CHANNEL_BASE, CHANNEL_MAX = 512, 128  # of the localizer's trunk
LOCALIZER_SIDE = 32  # larger images are average-pooled to it: positions survive that


class WordLocalizer(nn.Module):
    """Maps images to where each word of a vocabulary appears in them.

    Args:
        resolution: side of the images before pooling, a power of two from 16; they come pooled to at most `LOCALIZER_SIDE`.
        vocabulary_size: V.
    """

    def __init__(self, resolution: int, vocabulary_size: int) -> None:
        super().__init__()
        self.trunk = ResidualTrunk(min(resolution, LOCALIZER_SIDE), CHANNEL_BASE, CHANNEL_MAX)
        channels = channels_at(HEAD_RESOLUTION, CHANNEL_BASE, CHANNEL_MAX)
        self.norm = nn.LayerNorm(channels)
        self.to_words = nn.Linear(channels, vocabulary_size)
        self.offset = nn.Parameter(torch.full((vocabulary_size,), -3.0))  # most words are absent from most captions

    def maps(self, images: Tensor) -> Tensor:
        """Return the class activation maps of images [N, 3, R, R] in [-1, 1]: logits [N, V, P] float32."""
        return self.to_words(self.norm(to_sequence(self.trunk(images)))).float().transpose(1, 2)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [N, V] of each word being in the caption of images [N, 3, R, R]: a smooth maximum over positions."""
        return self.maps(images).logsumexp(dim=2) - math.log(SIDE**2) + self.offset


class LayoutPredictor(nn.Module):
    """Maps encoded captions to a distribution over positions for the object that each token names. Its arguments are its text head's."""

    def __init__(self, config: TextHeadConfig, *, text_width: int, max_tokens: int) -> None:
        super().__init__()
        self.text_head = TextHead(config, text_width=text_width, max_tokens=max_tokens)
        self.to_places = linear(config.width, SIDE**2)

    def forward(self, text: TextBatch) -> Tensor:
        """Return log-probabilities [N, L, P] float32, normalised over the P positions for each token."""
        return self.to_places(self.text_head(text).words).float().log_softmax(dim=2)
