"""Where in a picture the things are that a caption's words name: found in real pictures, then foretold from the caption alone.

That "a red star left of a blue ring" puts the star on the left follows from the relation and from who is named first, together: either alone
tells nothing, and a generator that has learned neither is pulled towards neither. A word is found in a picture without understanding the
sentence, though, by learning which words pictures have in common (class activation maps: Zhou et al. 2016, arXiv 1512.04150, by multiple
instance learning: Oquab et al. 2015), and where it was found is a direct lesson for whoever reads the sentence.
N batch, L tokens, V vocabulary, C channels, P = S * S places, E width of the encoder.
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
LOCALIZER_SIDE = 32  # larger pictures are averaged down to it: where things are is to be seen in small ones too


class WordLocalizer(nn.Module):
    """Pictures of side R, at most `LOCALIZER_SIDE` -> where each word of a vocabulary is to be seen in them.

    Args:
        resolution: of the pictures before they were averaged, a power of two from 16.
        words: V.
    """

    def __init__(self, resolution: int, words: int) -> None:
        super().__init__()
        self.trunk = ResidualTrunk(min(resolution, LOCALIZER_SIDE), CHANNEL_BASE, CHANNEL_MAX)
        channels = channels_at(HEAD_RESOLUTION, CHANNEL_BASE, CHANNEL_MAX)
        self.norm = nn.LayerNorm(channels)
        self.to_words = nn.Linear(channels, words)
        self.offset = nn.Parameter(torch.full((words,), -3.0))  # most words are missing from most captions

    def maps(self, pictures: Tensor) -> Tensor:
        """[N, 3, R, R] in [-1, 1] -> logits [N, V, P] float32, by place."""
        return self.to_words(self.norm(to_sequence(self.trunk(pictures)))).float().transpose(1, 2)

    def forward(self, pictures: Tensor) -> Tensor:
        """[N, 3, R, R] -> logits [N, V] of a word being in the caption: that of its best places (a smooth maximum)."""
        return self.maps(pictures).logsumexp(dim=2) - math.log(SIDE**2) + self.offset


class LayoutPredictor(nn.Module):
    """Encoded captions -> where the thing is that each token names.

    Args:
        config: of its text head.
        text_width: E, width of the frozen encoder.
        max_tokens: most tokens a caption can have.
    """

    def __init__(self, config: TextHeadConfig, *, text_width: int, max_tokens: int) -> None:
        super().__init__()
        self.text_head = TextHead(config, text_width=text_width, max_tokens=max_tokens)
        self.to_places = linear(config.width, SIDE**2)

    def forward(self, text: TextBatch) -> Tensor:
        """Log-probabilities [N, L, P] float32, those of a token over all places."""
        return self.to_places(self.text_head(text).words).float().log_softmax(dim=2)
