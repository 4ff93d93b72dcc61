"""R-precision on any captioned pictures: does a judge that never saw a drawn picture find its caption among a hundred?

R@1 of the true caption among 100 (Xu et al. 2018, arXiv 1711.10485, sec. 4), and the cosine with it less the mean cosine with the others. The
judge, a `Matcher`, is trained here on real pairs. No caption that is scored or asked beside a scored one was shown to it:

| pictures | the generator trained on their captions | the matcher did |
|---|---|---|
| most of the training side | yes | yes |
| validation: up to a quarter of the training side's captions | yes | no; they say when it stops |
| the held-out side | no | no |

So the scores of real pictures are what a perfect generator would reach. Recombined captions, halves of two training captions that no picture
has together, are asked among each other; what a perfect generator would reach there nobody knows. Sides are of captions: a picture goes with
its first one, and whatever captions the scored pictures have are left out of the matcher's training. N pictures, M captions in the pool, K
captions a picture.
"""

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from gan_t2i.checkpoint import load_weights, read_tensors, write_tensors
from gan_t2i.core.errors import GanT2IError
from gan_t2i.core.files import cache_dir
from gan_t2i.core.images import composite_on_grey
from gan_t2i.core.runtime import seeded_rng
from gan_t2i.data.packing import PackedDataset
from gan_t2i.evaluation.matcher import Matcher, MatcherConfig, Pairs, are_own, train_matcher
from gan_t2i.evaluation.recombined import recombine
from gan_t2i.text.cache import TextCache
from gan_t2i.text.encoder import SentenceEncoder

log = logging.getLogger(__name__)

Generate = Callable[[Sequence[str], Sequence[int]], list[Image.Image]]
"""Prompts and seeds -> pictures, prompt by prompt, each with its seeds in order."""

CANDIDATES = 100
LIMIT = 200  # captions a side, unless told
SEEDS = 1  # pictures a caption, unless told
REPEATS = 10  # random sets of candidates for each picture
_SHARE, _LEAST, _MOST_SHARE, _MOST = 0.1, 200, 0.25, 1000  # of the training side's captions for validation


@dataclass(frozen=True)
class Judge:
    """A matcher and what it scores: pictures of the training side that it was not shown, and the held-out ones, each caption once."""

    matcher: Matcher
    pooled: Tensor  # [captions, E]
    captions: Sequence[str]
    train: Pairs
    heldout: Pairs
    recombined: Sequence[str]
    recombined_pooled: Tensor  # [recombined, E]


@dataclass(frozen=True)
class Score:
    """Of some pictures: R@1 with its standard error over captions, and cosine with the own caption less with others."""

    r1: float
    error: float
    gap: float
    count: int


@dataclass(frozen=True)
class RetrievalResult:
    """A score for real and for generated pictures of each side; `candidates` captions stand to choose from."""

    candidates: int
    seeds: int
    limit: int
    scores: dict[str, Score]

    @property
    def changed(self) -> dict[str, int]:
        """The settings that are not the defaults, which the name of its file tells."""
        return {name: value for name, value, usual in (("limit", self.limit, LIMIT), ("seeds", self.seeds, SEEDS)) if value != usual}

    def scalars(self) -> dict[str, float]:
        """What TensorBoard shows."""
        return {f"Metrics/retrieval/{name}_{what}": getattr(score, what) for name, score in self.scores.items() for what in ("r1", "gap")}

    def table(self) -> str:
        """A line for each kind of pictures, the real ones before the generated."""
        chance = 1 / self.candidates
        lines = [f"{'pictures':20}  {'R@1':>5}  {'+-':>5}  {'chance':>6}  {'gap':>6}  {'n':>5}"]
        for name, score in self.scores.items():
            lines.append(f"{name:20}  {score.r1:5.3f}  {score.error:5.3f}  {chance:6.3f}  {score.gap:6.3f}  {score.count:5}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        scores = {name: {**asdict(score), "chance": 1 / self.candidates} for name, score in self.scores.items()}
        return {"suite": "retrieval", "candidates": self.candidates, "seeds": self.seeds, "limit": self.limit, "scores": scores}


def prepare_judge(
    dataset: PackedDataset,
    encoder: SentenceEncoder,
    device: torch.device,
    *,
    config: MatcherConfig | None = None,
    progress: bool = True,
) -> Judge:
    """The judge of a data set: its matcher is trained on first use, and kept in the cache for every model of the same data and encoder.

    Raises `GanT2IError` where there are too few captions to learn from or to ask about.
    """
    config = config or MatcherConfig()
    shown, validation, heldout = split_pairs(dataset)
    if len(shown) < 2 or len(validation) < 2:
        raise GanT2IError(
            f"the data set has {len(shown)} pictures to train a matcher on and {len(validation)} captions to check it with: "
            f"two of each are needed"
        )
    known, new = len(dataset.captions), _recombined(dataset)
    cache = TextCache.build(encoder, [*dataset.captions, *new], progress=progress)
    parts = torch.arange(len(cache)).split(1024)  # all at once would hold every token
    pooled = torch.cat([cache.gather(part).pooled for part in parts])

    def judge_with(matcher: Matcher) -> Judge:
        return Judge(matcher, pooled[:known], dataset.captions, validation, heldout, new, pooled[known:])

    key = [dataset.fingerprint, encoder.id, encoder.weights_hash, encoder.pipeline_hash, encoder.max_tokens, config.model_dump()]
    path = cache_dir() / "matchers" / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.safetensors"
    if path.is_file():
        try:
            matcher = Matcher(config, resolution=dataset.resolution, text_width=encoder.width)
            load_weights(matcher, read_tensors(path)[0], str(path))
            log.info(f"matcher: trained before, {path}")
            matcher = matcher.to(memory_format=torch.channels_last).to(device).eval().requires_grad_(False)
            return judge_with(matcher)
        except GanT2IError as error:
            log.info(f"the matcher is trained again: {error}")
    log.info(f"matcher: training on {len(shown):,} real pictures, checked with {len(validation):,} captions that it is not shown (once)")
    matcher = train_matcher(config, shown, validation, pooled[:known], resolution=dataset.resolution, device=device, progress=progress)
    write_tensors(path, matcher.state_dict(), {"type": "matcher"})
    return judge_with(matcher)


def _recombined(dataset: PackedDataset) -> list[str]:
    firsts = list(dict.fromkeys(dataset.captions[dataset.caption_ids[item][0]] for item in dataset.train.tolist()))
    order = torch.randperm(len(firsts), generator=seeded_rng("retrieval", "recombined"))
    return recombine([firsts[place] for place in order.tolist()], dataset.captions, LIMIT)


def split_pairs(dataset: PackedDataset) -> tuple[Pairs, Pairs, Pairs]:
    """What the matcher is trained on, its validation pairs, and the held-out ones; the latter two have every first caption once.

    No caption of a validation or held-out picture is in the first. Texts that differ in case or spaces alone are one caption.
    """
    texts: dict[str, int] = {}
    one = [texts.setdefault(" ".join(caption.casefold().split()), number) for number, caption in enumerate(dataset.captions)]
    captions = [[one[number] for number in numbers] for numbers in dataset.caption_ids]
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


def _once(dataset: PackedDataset, items: Sequence[int], captions: Sequence[Sequence[int]]) -> Pairs:
    """The first picture of every first caption, in an order that has nothing to do with the data set's."""
    found: dict[int, int] = {}
    for item in items:
        found.setdefault(captions[item][0], item)
    once = list(found.values())
    order = torch.randperm(len(once), generator=seeded_rng("retrieval", "order")).tolist()
    return _pairs(dataset, [once[index] for index in order], [captions[once[index]] for index in order])


def _pairs(dataset: PackedDataset, items: Sequence[int], captions: Sequence[Sequence[int]]) -> Pairs:
    places = torch.tensor(items, dtype=torch.int64)
    most = max(map(len, captions), default=1)
    padded = torch.tensor([[*numbers, *[-1] * (most - len(numbers))] for numbers in captions], dtype=torch.int64).reshape(-1, most)
    return Pairs(lambda numbers: dataset.gather(places[numbers]), padded)


def run_retrieval(
    generate: Generate, judge: Judge, *, seeds: int = SEEDS, limit: int = LIMIT, progress: bool = True, candidates: int = CANDIDATES
) -> RetrievalResult:
    """Score real pictures, and what `generate` draws for the same captions, against the same candidates.

    `limit` captions of each side and recombined ones, `seeds` pictures each; a side with fewer than two is left out, and so are recombined ones
    where there are fewer than `candidates`. Where the two sides together have fewer
    captions than `candidates`, all that they have stand to choose from.
    """
    if seeds < 1 or limit < 2:
        raise ValueError(f"seeds = {seeds}, limit = {limit}: at least one seed and two captions")
    pool = torch.cat([side.captions[:, 0] for side in (judge.train, judge.heldout) if len(side)]).unique()  # [M]
    sides = {name: side for name, side in (("train", judge.train), ("heldout", judge.heldout)) if len(side) > 1}
    others = min(int((~are_own(side.captions[:limit], pool)).sum(dim=1).min()) for side in sides.values())
    candidates = min(candidates, others + 1)
    if candidates < 2:
        raise GanT2IError("the data set has too few captions to choose among: every one of them is a caption of every picture")
    scores: dict[str, Score] = {}
    new = judge.recombined[:limit]
    asks_new = len(new) >= candidates  # among fewer, chance would be another
    total = (sum(min(limit, len(side)) for side in sides.values()) + asks_new * len(new)) * seeds
    with tqdm(total=total, desc="retrieval", unit="img", disable=None if progress else True) as bar:
        for name, side in sides.items():
            captions = side.captions[:limit]

            def score(parts: Iterable[Tensor], captions: Tensor = captions) -> Score:
                return _score(judge.matcher.similarity(parts, judge.pooled[pool]), captions, pool, candidates)

            scores[f"real_{name}"] = score(side.parts(len(captions)))
            asked = [judge.captions[caption] for caption in captions[:, 0].tolist()]
            scores[f"generated_{name}"] = _mean([score(of_seed) for of_seed in _draw(generate, asked, seeds, bar)])
        if asks_new:
            places, pooled = torch.arange(len(new)), judge.recombined_pooled[: len(new)]
            cosines = [judge.matcher.similarity(of_seed, pooled) for of_seed in _draw(generate, new, seeds, bar)]
            scores["generated_recombined"] = _mean([_score(of_seed, places[:, None], places, candidates) for of_seed in cosines])
    return RetrievalResult(candidates, seeds, limit, scores)


def _draw(generate: Generate, captions: Sequence[str], seeds: int, bar: Any) -> list[list[Tensor]]:
    """For each seed every caption's picture, uint8 [1, 3, R, R]."""
    drawn: list[list[Tensor]] = [[] for _ in range(seeds)]
    for number, caption in enumerate(captions):
        # seeds of its own for every caption, so that no one latent speaks for all
        pictures = generate([caption], range(number * seeds, (number + 1) * seeds))
        for of_seed, picture in zip(drawn, pictures, strict=True):
            of_seed.append(torch.from_numpy(np.array(composite_on_grey(picture))).permute(2, 0, 1)[None])
        bar.update(seeds)
    return drawn


def _score(cosines: Tensor, captions: Tensor, pool: Tensor, candidates: int) -> Score:
    """Of cosines [N, M] of pictures that have `captions` [N, K], of which the first is asked for, with the captions `pool` [M]."""
    own = are_own(captions, pool)
    true = torch.searchsorted(pool, captions[:, 0].contiguous())  # [N]
    matched = cosines.gather(1, true[:, None])[:, 0]
    hits, gaps = [], []
    for repeat in range(REPEATS):
        keys = torch.rand(cosines.shape, generator=seeded_rng("retrieval", "candidates", repeat)).masked_fill(own, -1)
        wrong = cosines.gather(1, keys.topk(candidates - 1, dim=1).indices)  # [N, candidates - 1]
        hits.append((matched > wrong.amax(dim=1)).float())
        gaps.append((matched - wrong.mean(dim=1)).mean().item())
    of_picture = torch.stack(hits).mean(dim=0)  # [N]
    error = of_picture.std().item() / math.sqrt(len(of_picture))
    return Score(of_picture.mean().item(), error, fmean(gaps), len(of_picture))


def _mean(scores: Sequence[Score]) -> Score:
    """Of the same captions with several seeds; the error is that of one seed, for the captions stay the same."""
    r1, error, gap = (fmean(getattr(score, name) for score in scores) for name in ("r1", "error", "gap"))
    return Score(r1, error, gap, sum(score.count for score in scores))
