"""The grid of fixed prompts and seeds that shows a run's progress."""

import torch
from PIL import Image

from gan_t2i.core.images import sheet, to_pictures
from gan_t2i.core.runtime import seeded_rng
from gan_t2i.data.packing import PackedDataset
from gan_t2i.training.session import Session


def grid_captions(session: Session) -> list[tuple[int, str]]:
    """Return (caption id, label) of the grid's prompts: half from training captions, half held out, spread over the data set."""
    dataset, count = session.dataset, session.config.report.grid_prompts
    seen = _spread(dataset, dataset.train.tolist(), count - count // 2 if len(dataset.heldout) else count)
    held = _spread(dataset, dataset.heldout.tolist(), count // 2)
    labelled = [(caption_id, "seen") for caption_id in seen] + [(caption_id, "held out") for caption_id in held]
    return [(caption_id, f"{dataset.captions[caption_id]} ({label})") for caption_id, label in labelled]


def _spread(dataset: PackedDataset, items: list[int], count: int) -> list[int]:
    """Return the first captions of `count` of `items`, by id; all different, and the same in every run."""
    chosen: dict[int, None] = {}
    for index in torch.randperm(len(items), generator=seeded_rng("grid")).tolist():
        if len(chosen) == count:
            break
        chosen[dataset.caption_ids[items[index]][0]] = None
    return list(chosen)


@torch.no_grad()
def draw_grid(session: Session) -> Image.Image:
    """Draw the grid's prompts with G's average, each at the same fixed seeds."""
    captions = grid_captions(session)
    seeds = session.config.report.grid_seeds
    G = session.networks.images
    z = torch.cat([torch.randn(1, G.z_width, generator=seeded_rng(seed, "z")) for seed in range(seeds)]).to(session.device)
    rows = [to_pictures(G(z, session.cache.gather([caption_id] * seeds).to(session.device))) for caption_id, _ in captions]
    return sheet(rows, [label for _, label in captions])
