"""A matcher of pictures and captions: an image tower and the frozen sentence encoder, trained on real pairs alone.

Contrastive with a learned temperature (InfoNCE in both directions, as in CLIP, Radford et al. 2021, arXiv 2103.00020). It is independent of
any generator: this module imports none. N batch, R resolution, E width of the encoder, D width of the joint space, K captions per picture,
padded with -1.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from gan_t2i.core.config import Count, StrictConfig
from gan_t2i.core.images import from_uint8, to_uint8
from gan_t2i.core.log import bar_options
from gan_t2i.core.runtime import autocast, seeded_rng, torch_defaults
from gan_t2i.ops.layers import activate, linear
from gan_t2i.text.encoder import SentenceEncoder

_CHUNK = 256  # pictures embedded at a time


class MatcherConfig(StrictConfig):
    """Settings of the matcher and its training; all of them are part of the key of the cached weights."""

    version: Count = 1
    """Raised when the network or its training changes."""
    side: Count = 64
    """Largest side of the network's input; larger pictures are averaged down, so that a matcher takes the same time at any resolution."""
    channels: Count = 32
    """Channels of the first layer. Each further layer halves the side and doubles them, to four times at most."""
    width: Count = 128
    """D."""
    batch: Count = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    max_kimg: float = 100.0
    """Most pictures that it is trained on, in thousands."""
    check_steps: Count = 40
    """Steps between validations."""
    patience: Count = 5
    """Validations without improvement before training stops."""
    seed: int = 0


class Matcher(nn.Module):
    """Pictures and pooled sentence vectors -> unit vectors in one space.

    Args:
        config: its size.
        resolution: R, a power of two from 16.
        text_width: E.
    """

    def __init__(self, config: MatcherConfig, *, resolution: int, text_width: int) -> None:
        super().__init__()
        self.side = min(resolution, config.side)
        layers: list[nn.Module] = []
        inputs = 3
        for level in range(int(math.log2(self.side)) - 2):  # down to 4x4
            outputs = config.channels * 2 ** min(level, 2)
            layers += [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1), nn.GroupNorm(8, outputs), nn.LeakyReLU(0.2)]
            inputs = outputs
        # positions are kept, not averaged: captions may say where things are
        self.image = nn.Sequential(*layers, nn.Flatten(), linear(inputs * 16, config.width))
        self.norm = nn.LayerNorm(text_width)
        self.text_hidden = linear(text_width, 2 * config.width)
        self.text_out = linear(2 * config.width, config.width)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def embed_images(self, images: Tensor) -> Tensor:
        """uint8 [N, 3, R, R] -> unit vectors [N, D] float32."""
        x = from_uint8(images.to(self.log_scale.device))
        if x.shape[2] > self.side:
            x = F.avg_pool2d(x, x.shape[2] // self.side)
        with autocast(x.device, "auto"):
            h = self.image(x)
        return F.normalize(h.float(), dim=1)

    def embed_text(self, pooled: Tensor) -> Tensor:
        """Sentence vectors [N, E] -> unit vectors [N, D] float32."""
        h = self.norm(pooled.to(self.log_scale.device))
        return F.normalize(self.text_out(activate(self.text_hidden(h))), dim=1)

    @torch.no_grad()
    def similarity(self, images: Iterable[Tensor], pooled: Tensor) -> Tensor:
        """Cosines [N, M] on the CPU of uint8 pictures, given in parts [n, 3, R, R], with sentence vectors [M, E]."""
        pictures = torch.cat([self.embed_images(part) for part in images])
        return (pictures @ self.embed_text(pooled).T).float().cpu()


def matcher_judge(matcher: Matcher, encoder: SentenceEncoder) -> Callable[[Sequence[Image.Image], str], list[float]]:
    """Return a judge for `sampling.best_of`: pictures of the matcher's resolution and a prompt -> the cosine of each with the prompt.

    `encoder` is the one whose sentence vectors the matcher was trained with.
    """

    @torch_defaults()
    def judge(pictures: Sequence[Image.Image], prompt: str) -> list[float]:
        cosines: list[float] = matcher.similarity([to_uint8(pictures)], encoder.encode([prompt]).pooled)[:, 0].tolist()
        return cosines

    return judge


@dataclass(frozen=True)
class Pairs:
    """Real pictures with their captions as indices into a list of sentence vectors."""

    gather: Callable[[Tensor], Tensor]
    """Indices [N] of pictures -> uint8 [N, 3, R, R]."""
    captions: Tensor  # [P, K] int64, -1 where there are fewer; every picture has one

    def __len__(self) -> int:
        return len(self.captions)

    def parts(self, count: int) -> Iterator[Tensor]:
        """The first `count` pictures, in chunks."""
        return map(self.gather, torch.arange(count).split(_CHUNK))


def info_nce(similarity: Tensor, also_true: Tensor) -> Tensor:
    """Cross-entropy in both directions of scaled cosines [N, N] with the true pairs on the diagonal.

    `also_true` [N, N] bool marks further true pairs, which are left out of the negatives.
    """
    logits = similarity.masked_fill(also_true, -math.inf)
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def are_own(captions: Tensor, chosen: Tensor) -> Tensor:
    """[N, M] bool, True where the caption `chosen` [M] is one of the picture's own `captions` [N, K]."""
    return (captions[:, None, :] == chosen[None, :, None]).any(dim=2)


def train_matcher(matcher: Matcher, config: MatcherConfig, train: Pairs, validation: Pairs, pooled: Tensor) -> None:
    """Train `matcher` until the loss on the validation pairs, whose captions `train` does not have, stops falling; leave it at its best state.

    `pooled` [captions, E] are the frozen encoder's vectors. The result depends on the arguments alone, not on the global random state.
    """
    optimizer = torch.optim.AdamW(matcher.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    batch = min(config.batch, len(train))
    best, best_state, waited = math.inf, copy.deepcopy(matcher.state_dict()), 0
    steps = max(1, round(config.max_kimg * 1000 / batch))
    order = torch.empty(0, dtype=torch.int64)
    rng = seeded_rng("matcher", config.seed)
    with tqdm(total=steps * batch, desc="matcher", unit="img", unit_scale=True, **bar_options()) as bar:
        for step in range(1, steps + 1):
            if len(order) < batch:
                order = torch.randperm(len(train), generator=rng)
            chosen, order = order[:batch], order[batch:]
            loss = _loss(matcher, train, chosen, pooled, rng)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            bar.update(batch)
            if step % config.check_steps == 0 or step == steps:
                current = validation_loss(matcher, validation, pooled)
                waited = 0 if current < best else waited + 1
                if current < best:
                    best, best_state = current, copy.deepcopy(matcher.state_dict())
                bar.set_postfix_str(f"validation {current:.3f}, best {best:.3f}", refresh=False)
                if waited >= config.patience:
                    break
    matcher.load_state_dict(best_state)


def _loss(matcher: Matcher, pairs: Pairs, chosen: Tensor, pooled: Tensor, rng: torch.Generator) -> Tensor:
    """InfoNCE of the pictures `chosen` [N], each with a random one of its captions."""
    own = pairs.captions[chosen]  # [N, K]
    count = (own >= 0).sum(dim=1)
    pick = (torch.rand(len(own), generator=rng) * count).long()
    ids = own.gather(1, pick[:, None])[:, 0]
    cosines = matcher.embed_images(pairs.gather(chosen)) @ matcher.embed_text(pooled[ids]).T
    return info_nce(cosines * matcher.log_scale.exp().clamp(max=100), are_own(own, ids).fill_diagonal_(False).to(cosines.device))


@torch.no_grad()
def validation_loss(matcher: Matcher, pairs: Pairs, pooled: Tensor) -> float:
    """InfoNCE over all `pairs` at once, each with its first caption, at the temperature that gives the lowest loss.

    The temperature is fitted because the learned one becomes overconfident on the training pairs long before the ranking gets worse.
    """
    ids = pairs.captions[:, 0]
    cosines = matcher.similarity(pairs.parts(len(pairs)), pooled[ids])
    also_true = are_own(pairs.captions, ids).fill_diagonal_(False)
    return min(info_nce(cosines * scale, also_true).item() for scale in (5.0, 7.0, 10.0, 14.0, 20.0, 28.0, 40.0))
