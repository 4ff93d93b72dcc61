"""R-precision on any captioned pictures: how often a matcher finds the caption of a generated picture among a hundred captions.

R@1 of the true caption among 100 (Xu et al. 2018, arXiv 1711.10485, sec. 4), and the cosine with it minus the mean cosine with the others. The
`Matcher` is trained here, on real pairs alone. The captions that it scores, as true ones or as distractors, were never shown to it:

| pictures | the generator was trained on their captions | the matcher was |
|---|---|---|
| most of the training side | yes | yes |
| validation: up to a quarter of the training side's captions | yes | no; they decide when its training stops |
| the held-out side | no | no |

So the scores of real pictures are what a perfect generator would reach. Recombined captions, halves of two training captions that no picture
has together, are ranked among each other; there is no real picture to say what a perfect generator would reach. Sides are sets of captions: a
picture belongs to the side of its first one, and none of a scored picture's captions is in the matcher's training. N pictures, M captions in
the pool, K captions per picture.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, ClassVar

import torch
from torch import Tensor
from tqdm import tqdm

from gan_t2i.core.errors import GanT2IError
from gan_t2i.core.images import to_uint8
from gan_t2i.core.log import bar_options
from gan_t2i.core.runtime import seeded_rng, seeded_weights
from gan_t2i.data.packing import PackedDataset
from gan_t2i.evaluation.matcher import Matcher, MatcherConfig, Pairs, are_own, train_matcher
from gan_t2i.evaluation.recombined import recombine, shuffled_captions
from gan_t2i.evaluation.results import Generate, Result
from gan_t2i.pretraining.loop import train_or_load
from gan_t2i.text.cache import TextCache
from gan_t2i.text.encoder import SentenceEncoder

log = logging.getLogger(__name__)

CANDIDATES = 100
LIMIT = 200  # default number of captions per side
SEEDS = 1  # default number of pictures per caption
REPEATS = 10  # random sets of candidates per picture
# Share of the training side's captions used for validation, its bounds as counts, and its upper bound as a share.
_SHARE, _LEAST, _MOST, _MOST_SHARE = 0.1, 200, 1000, 0.25


@dataclass(frozen=True)
class RetrievalTask:
    """A matcher, and the real pairs that it was not trained on: validation and held-out pictures, each first caption once."""

    matcher: Matcher
    captions: Sequence[str]  # the data set's, then the recombined ones
    pooled: Tensor  # [captions, E]
    train: Pairs
    heldout: Pairs
    recombined: Tensor  # int64, indices into `captions`


@dataclass(frozen=True)
class Score:
    """R@1 with its standard error over captions, the cosine gap between the own caption and the others, the number of pictures, and the R@1
    of chance."""

    r1: float
    error: float
    gap: float
    count: int
    chance: float


@dataclass(frozen=True)
class RetrievalResult(Result):
    """A score for real and for generated pictures of each side, each picture with `candidates` captions to choose from."""

    suite: ClassVar = "retrieval"
    defaults: ClassVar = {"limit": LIMIT, "seeds": SEEDS}

    candidates: int
    seeds: int
    limit: int
    scores: dict[str, Score]

    def scalars(self) -> dict[str, float]:
        return {f"Metrics/retrieval/{name}_{what}": getattr(score, what) for name, score in self.scores.items() for what in ("r1", "gap")}

    def table(self) -> str:
        """A line per kind of pictures, the real ones before the generated ones."""
        lines = [f"{'pictures':20}  {'R@1':>5}  {'+-':>5}  {'chance':>6}  {'gap':>6}  {'n':>5}"]
        for name, score in self.scores.items():
            lines.append(f"{name:20}  {score.r1:5.3f}  {score.error:5.3f}  {score.chance:6.3f}  {score.gap:6.3f}  {score.count:5}")
        return "\n".join(lines)


def prepare_retrieval(
    dataset: PackedDataset, encoder: SentenceEncoder, device: torch.device, *, config: MatcherConfig | None = None
) -> RetrievalTask:
    """The task of a data set. Its matcher is trained on first use, and cached for every model of the same data and encoder.

    Raises `GanT2IError` where there are too few captions to train or to validate with.
    """
    config = config or MatcherConfig()
    shown, validation, heldout = split_pairs(dataset)
    if len(shown) < 2 or len(validation) < 2:
        raise GanT2IError(
            f"the data set has {len(shown)} pictures to train a matcher on and {len(validation)} captions to check it with: "
            f"two of each are needed"
        )
    texts = shuffled_captions(dataset, dataset.train, seeded_rng("retrieval", "recombined"))
    known, captions = len(dataset.captions), [*dataset.captions, *recombine(texts, dataset.captions, LIMIT)]
    cache = TextCache.build(encoder, captions)
    pooled = cache.pooled(range(len(cache)))
    with seeded_weights(config.seed):
        matcher = Matcher(config, resolution=dataset.resolution, text_width=encoder.width)
    matcher = matcher.to(memory_format=torch.channels_last).to(device)

    def train() -> None:
        pairs = f"{len(shown):,} real pictures, validated with {len(validation):,} captions that it is not trained on"
        log.info(f"matcher: training on {pairs} (once)")
        train_matcher(matcher, config, shown, validation, pooled)

    key = [dataset.fingerprint, encoder.id, encoder.weights_hash, encoder.pipeline_hash, encoder.max_tokens, config.model_dump()]
    train_or_load(matcher, "matcher", key, train, verb="trained")
    matcher.eval().requires_grad_(False)
    return RetrievalTask(matcher, captions, pooled, validation, heldout, torch.arange(known, len(captions)))


def split_pairs(dataset: PackedDataset) -> tuple[Pairs, Pairs, Pairs]:
    """The pairs to train the matcher on, its validation pairs, and the held-out pairs; the latter two have every first caption once.

    The training pairs have no caption of a validation or held-out picture. Texts that differ only in case or spaces are one caption.
    """
    captions = _caption_ids(dataset)
    train, heldout = dataset.train.tolist(), dataset.heldout.tolist()
    firsts = sorted({captions[item][0] for item in train} - {captions[item][0] for item in heldout})
    count = min(max(round(_SHARE * len(firsts)), _LEAST), int(_MOST_SHARE * len(firsts)), _MOST)
    order = torch.randperm(len(firsts), generator=seeded_rng("retrieval", "validation"))
    kept = {firsts[index] for index in order[:count].tolist()}
    validation = [item for item in train if captions[item][0] in kept]
    unseen = {number for item in validation + heldout for number in captions[item]}
    left = {item: [number for number in captions[item] if number not in unseen] for item in train}
    shown = [item for item in train if left[item]]
    return (
        _pairs(dataset, shown, [left[item] for item in shown]),
        _once(dataset, validation, captions),
        _once(dataset, heldout, captions),
    )


def heldout_pairs(dataset: PackedDataset, items: Sequence[int]) -> Pairs:
    """The pairs of some of the held-out pictures, as `split_pairs` gives those of all."""
    return _once(dataset, items, _caption_ids(dataset))


def _caption_ids(dataset: PackedDataset) -> list[list[int]]:
    """The captions of every picture; texts that differ only in case or spaces have one number, that of the first."""
    texts: dict[str, int] = {}
    one = [texts.setdefault(" ".join(caption.casefold().split()), number) for number, caption in enumerate(dataset.captions)]
    return [[one[number] for number in numbers] for numbers in dataset.caption_ids]


def _once(dataset: PackedDataset, items: Sequence[int], captions: Sequence[Sequence[int]]) -> Pairs:
    """The first picture of every first caption, shuffled."""
    found: dict[int, int] = {}
    for item in items:
        found.setdefault(captions[item][0], item)
    once = list(found.values())
    order = torch.randperm(len(once), generator=seeded_rng("retrieval", "order")).tolist()
    return _pairs(dataset, [once[index] for index in order], [captions[once[index]] for index in order])


def _pairs(dataset: PackedDataset, items: Sequence[int], captions: Sequence[Sequence[int]]) -> Pairs:
    index = torch.tensor(items, dtype=torch.int64)
    most = max(map(len, captions), default=1)
    padded = torch.tensor([[*numbers, *[-1] * (most - len(numbers))] for numbers in captions], dtype=torch.int64).reshape(-1, most)
    return Pairs(lambda numbers: dataset.gather(index[numbers]), padded)


def run_retrieval(
    generate: Generate, task: RetrievalTask, *, seeds: int = SEEDS, limit: int = LIMIT, candidates: int = CANDIDATES
) -> RetrievalResult:
    """Score real pictures, and the pictures generated for the same captions, against the same candidates.

    Takes `limit` captions of each side and recombined ones, with `seeds` generated pictures each. A side with fewer than two captions is left
    out, and so are recombined captions if there are fewer than `candidates`. If the two sides together have fewer captions than `candidates`,
    the candidates are all of them.
    """
    if seeds < 1 or limit < 2:
        raise ValueError(f"seeds = {seeds}, limit = {limit}: at least one seed and two captions")
    pool = torch.cat([side.captions[:, 0] for side in (task.train, task.heldout) if len(side)]).unique()  # [M]
    sides = {name: side for name, side in (("train", task.train), ("heldout", task.heldout)) if len(side) > 1}
    others = min(int((~are_own(side.captions[:limit], pool)).sum(dim=1).min()) for side in sides.values())
    candidates = min(candidates, others + 1)
    if candidates < 2:
        raise GanT2IError("the data set has too few captions to choose among: every one of them is a caption of every picture")
    kinds = {name: (side.captions[:limit], pool) for name, side in sides.items()}
    new = task.recombined[:limit]
    if len(new) >= candidates:  # among fewer, chance would be higher
        kinds["recombined"] = (new[:, None], new)
    scores: dict[str, Score] = {}
    total = sum(len(captions) for captions, _ in kinds.values()) * seeds
    with tqdm(total=total, desc="retrieval", unit="img", **bar_options()) as bar:
        for name, (captions, choices) in kinds.items():
            vectors = task.pooled[choices]
            if name in sides:
                real = task.matcher.similarity(sides[name].parts(len(captions)), vectors)
                scores[f"real_{name}"] = _score(real, captions, choices, candidates)
            prompts = [task.captions[caption] for caption in captions[:, 0].tolist()]
            cosines = [task.matcher.similarity(pictures, vectors) for pictures in _generate(generate, prompts, seeds, bar)]
            scores[f"generated_{name}"] = _mean([_score(of_seed, captions, choices, candidates) for of_seed in cosines])
    return RetrievalResult(candidates, seeds, limit, scores)


def _generate(generate: Generate, captions: Sequence[str], seeds: int, bar: Any) -> list[list[Tensor]]:
    """For each seed the pictures of all captions, uint8 [1, 3, R, R] each."""
    generated: list[list[Tensor]] = [[] for _ in range(seeds)]
    for number, caption in enumerate(captions):
        # every caption has its own seeds, so that the score does not hang on one latent
        pictures = generate([caption], range(number * seeds, (number + 1) * seeds))
        for of_seed, picture in zip(generated, pictures, strict=True):
            of_seed.append(to_uint8([picture]))
        bar.update(seeds)
    return generated


def _score(cosines: Tensor, captions: Tensor, pool: Tensor, candidates: int) -> Score:
    """Score N pictures by their cosines [N, M] with the captions `pool` [M]; `captions` [N, K] are their own, the true one first."""
    own = are_own(captions, pool)
    true = torch.searchsorted(pool, captions[:, 0].contiguous())  # [N]
    matched = cosines.gather(1, true[:, None])[:, 0]
    hits, gaps = [], []
    for repeat in range(REPEATS):
        keys = torch.rand(cosines.shape, generator=seeded_rng("retrieval", "candidates", repeat)).masked_fill(own, -1)
        others = cosines.gather(1, keys.topk(candidates - 1, dim=1).indices)  # [N, candidates - 1]
        hits.append((matched > others.amax(dim=1)).float())
        gaps.append((matched - others.mean(dim=1)).mean().item())
    r1 = torch.stack(hits).mean(dim=0)  # [N]
    return Score(r1.mean().item(), r1.std().item() / math.sqrt(len(r1)), fmean(gaps), len(r1), 1 / candidates)


def _mean(scores: Sequence[Score]) -> Score:
    """The mean of scores of the same captions with several seeds; the error stays that of one seed, as the captions are the same."""
    r1, error, gap = (fmean(getattr(score, name) for score in scores) for name in ("r1", "error", "gap"))
    return Score(r1, error, gap, sum(score.count for score in scores), scores[0].chance)
