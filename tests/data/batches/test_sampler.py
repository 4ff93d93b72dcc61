"""The n-th picture of a run comes with a caption of its own, and depends on (seed, n) alone."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import ImageColor

from gan_t2i.data.batches.negatives import OneChange
from gan_t2i.data.batches.sampler import Sampler
from gan_t2i.data.builtin.shapes import make_shapes
from gan_t2i.data.packing import pack
from gan_t2i.data.settings import DataConfig
from gan_t2i.training.session import Session

HELDOUT_COLOUR = "orange"


@pytest.fixture
def session(make_session: Callable[..., Session]) -> Session:
    return make_session()


def items_of(session: Session, images: torch.Tensor) -> list[int]:
    """Find the indices of these pictures in the data set, by their pixels."""
    every = session.dataset.gather(range(len(session.dataset)))
    matches = (every[None] == images[:, None]).flatten(2).all(dim=2)  # [N, pictures]
    assert (matches.sum(dim=1) == 1).all()
    return matches.int().argmax(dim=1).tolist()


def test_a_picture_comes_with_its_own_caption(session: Session) -> None:
    batch = session.sampler.batch(0, 100)
    for image, item, caption_id in zip(batch.images, items_of(session, batch.images), batch.captions.tolist(), strict=True):
        assert caption_id in session.dataset.caption_ids[item]
        words = session.dataset.captions[caption_id].split()
        colour = words[1] if words[0] == "a" else words[0]
        assert image[:, 8, 8].tolist() == list(ImageColor.getrgb(colour))  # what it looks like, not what the index says


def test_the_step_gets_the_embeddings_of_these_captions(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {}
    monkeypatch.setattr(session, "step", lambda batch, encode, nimg: given.update(images=batch.images, text=encode(batch.captions)) or {})
    session.run_step(8)
    batch = session.sampler.batch(8, 4)
    assert torch.equal(given["images"], batch.images)
    for row, caption_id in enumerate(batch.captions.tolist()):
        encoded = session.encoder.encode([session.dataset.captions[caption_id]])
        torch.testing.assert_close(given["text"].pooled[row], encoded.pooled[0], rtol=1e-3, atol=1e-3)  # the cache holds float16
        torch.testing.assert_close(given["text"].tokens[row][given["text"].mask[row]], encoded.tokens[0], rtol=1e-2, atol=1e-2)


def test_the_mask_excludes_the_pictures_own_captions(session: Session) -> None:
    captions = session.dataset.caption_ids
    batch = session.sampler.batch(0, 1000)
    assert batch.negatives[:, 0].tolist() == batch.captions.roll(1).tolist()
    expected = [[batch.captions[row - 1].item() not in captions[item]] for row, item in enumerate(items_of(session, batch.images))]
    assert batch.negative_mask.tolist() == expected
    assert not batch.negative_mask.all()  # the last picture of an epoch is now and then the next one's first, with another of its captions


def test_it_says_which_captions_other_pictures_have_too(session: Session) -> None:
    assert not session.sampler.batch(0, 100).shared.any()
    dataset = session.dataset
    first, second, *_ = dataset.train.tolist()
    unseen = dataset.heldout.tolist()[0]
    own, theirs = dataset.caption_ids[first][0], dataset.caption_ids[second][0]
    dataset.caption_ids[first] += (theirs, own)  # its own one twice
    dataset.caption_ids[unseen] = (*dataset.caption_ids[unseen], own)  # that of a picture which is never shown
    del dataset.shared_captions
    batch = session.sampler.batch(0, 100)
    assert batch.shared.tolist() == [caption == theirs for caption in batch.captions.tolist()]
    assert batch.shared.any()


def test_every_epoch_shows_every_training_picture_once(session: Session) -> None:
    size = len(session.dataset.train)
    assert size == 10
    orders = [items_of(session, session.sampler.batch(epoch * size, size).images) for epoch in range(6)]
    for order in orders:
        assert sorted(order) == session.dataset.train.tolist()
    assert len({tuple(order) for order in orders}) == 6  # shuffled anew
    # Batches across the border of two epochs are the same pictures.
    assert items_of(session, session.sampler.batch(0, 2 * size).images) == orders[0] + orders[1]
    assert items_of(session, torch.cat([session.sampler.batch(nimg, 4).images for nimg in range(0, 20, 4)])) == orders[0] + orders[1]


def test_no_held_out_picture_or_caption_is_shown(session: Session) -> None:
    batch = session.sampler.batch(0, 400)
    assert not set(items_of(session, batch.images)) & set(session.dataset.heldout.tolist())
    assert not any(HELDOUT_COLOUR in session.dataset.captions[caption_id] for caption_id in batch.captions.tolist())


def test_all_captions_of_a_picture_are_shown(session: Session) -> None:
    counts = Counter(session.sampler.batch(0, 400).captions.tolist())
    assert set(counts) == {caption_id for item in session.dataset.train for caption_id in session.dataset.caption_ids[item]}
    assert min(counts.values()) > 5  # of 20 on average


def test_captions_are_drawn_by_weight(session: Session) -> None:
    dataset = session.dataset
    places = {caption: place for item in dataset.train for place, caption in enumerate(dataset.caption_ids[item])}
    assert set(places.values()) == {0, 1}
    for weights, expected in (((1.0,), 200), ((3.0, 1.0), 300), ((1.0, 3.0, 100.0), 100)):
        drawn = Sampler(dataset, 0, settings=DataConfig(caption_weights=weights)).batch(0, 400).captions.tolist()
        assert abs(sum(places[caption] == 0 for caption in drawn) - expected) < 40  # four standard deviations


def test_a_batch_is_a_function_of_seed_and_nimg(session: Session) -> None:
    first, again, other = (Sampler(session.dataset, seed) for seed in (3, 3, 4))
    positions = [0, 4, 8, 12, 40, 400, 4000]
    expected = {nimg: first.batch(nimg, 4) for nimg in positions}
    for nimg in reversed(positions):
        for part, value in vars(again.batch(nimg, 4)).items():
            assert value is None or torch.equal(value, getattr(expected[nimg], part))
    assert not all(torch.equal(other.batch(nimg, 4).captions, expected[nimg].captions) for nimg in positions)
    assert not torch.equal(first.batch(0, 40).captions, first.batch(40, 40).captions)


def test_negatives_of_several_kinds_fill_one_column_each(tmp_path: Path) -> None:
    dataset = pack(make_shapes(tmp_path / "set", count=300, size=16, progress=False), tmp_path / "packed", 16, progress=False)
    changed = OneChange(dataset)
    both = Sampler(dataset, 0, (None, changed))
    batch = both.batch(0, 64)
    assert batch.negatives.shape == batch.negative_mask.shape == (64, 2)
    assert torch.equal(batch.negatives[:, :1], Sampler(dataset, 0).batch(0, 64).negatives)
    hard = Sampler(dataset, 0, (changed,)).batch(0, 64)
    assert torch.equal(batch.negatives[:, 1:], hard.negatives)
    assert hard.negative_mask.all()
    assert not torch.equal(hard.negatives, both.batch(64, 64).negatives[:, 1:])
    trained = {caption for item in dataset.train for caption in dataset.caption_ids[item]}
    assert set(batch.negatives[:, 0].tolist()) <= trained


def test_nearest_negatives_follow_the_encoders_vectors(make_session: Callable[..., Session]) -> None:
    session = make_session(terms={"mismatch": {"negatives": ["random", "nearest"]}})
    captions = session.dataset.caption_ids
    batch = session.sampler.batch(0, 400)
    assert batch.negatives.shape == (400, 2)
    assert batch.negative_mask[:, 1].all()
    trained = {caption for item in session.dataset.train for caption in captions[item]}
    for item, shown, negative in zip(items_of(session, batch.images), batch.captions.tolist(), batch.negatives[:, 1].tolist(), strict=True):
        others = sorted(trained - set(captions[item]))
        assert len(others) == 18
        similarity = torch.cosine_similarity(session.cache.gather(others).pooled, session.cache.gather([shown]).pooled)
        nearest = [others[index] for index in similarity.argsort(descending=True)[:16].tolist()]
        assert negative in nearest
    assert torch.equal(batch.negatives[:, :1], Sampler(session.dataset, 0).batch(0, 400).negatives)
    again = make_session(terms={"mismatch": {"negatives": ["random", "nearest"]}}).sampler
    assert torch.equal(again.batch(0, 400).negatives, batch.negatives)
    assert not torch.equal(again.batch(400, 400).negatives, batch.negatives)
    assert all(value.isfinite() for value in session.run_step(0).values())


def test_rows_of_a_batch_equal_those_of_the_whole(session: Session) -> None:
    whole = Sampler(session.dataset, 3).batch(8, 16)
    again = Sampler(session.dataset, 3)
    again.batch(8000, 16)
    halves = [again.batch(8, 16, rows) for rows in (slice(8, 16), slice(0, 8))]
    assert torch.equal(torch.cat([halves[1].images, halves[0].images]), whole.images)
    assert torch.equal(halves[0].captions, whole.captions)
