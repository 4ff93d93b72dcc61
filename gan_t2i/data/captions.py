"""Caption augmentation: further captions of a picture, made when it is packed: fixed forms, dropped words, shuffled tags.

They follow from a caption's text alone, so packing is reproducible. A picture's plain captions stay first; the first is the one evaluated. In
training each caption of a picture is as likely as the others. To add a kind of augmentation, change `variants`.
"""

import random
import re
from collections.abc import Iterable, Sequence

from gan_t2i.data.settings import DataSettings
from gan_t2i.data.splits import Split

VARIANTS = 3  # altered copies of each training caption


def augment(split: Split, settings: DataSettings) -> list[tuple[str, ...]]:
    """Return the captions of each record with its further ones; none of these is a caption of the other side.

    Forms are applied on both sides; words are dropped and tags shuffled in training captions alone, as held-out ones serve evaluation.
    """
    sides = list(zip(split.captions, split.heldout, strict=True))
    trained = {caption for captions, heldout in sides if not heldout for caption in captions}
    evaluated = [without(trained, apply_forms(settings.caption_forms, captions)) if heldout else () for captions, heldout in sides]
    unseen = {caption for captions in evaluated for caption in captions}

    def of_training(captions: Sequence[str]) -> tuple[str, ...]:
        altered = [variant for caption in captions for variant in variants(caption, settings)]
        return without(unseen, apply_forms(settings.caption_forms, [*captions, *altered]))

    return [found if heldout else of_training(captions) for (captions, heldout), found in zip(sides, evaluated, strict=True)]


def without(excluded: set[str], captions: Iterable[str]) -> tuple[str, ...]:
    """Return the captions that are not in `excluded`."""
    return tuple(caption for caption in captions if caption not in excluded)


def apply_forms(forms: Sequence[str], captions: Sequence[str]) -> tuple[str, ...]:
    """Return every caption in every form, each text once; the captions themselves, whose form is the first, come first and in their order."""
    texts = (form.replace("{}", caption) for form in forms for caption in captions)
    return tuple(dict.fromkeys(" ".join(text.split()) for text in texts))


def variants(caption: str, settings: DataSettings) -> list[str]:
    """Return `VARIANTS` copies of a caption with its tags shuffled and words dropped; none where both are off."""
    result = []
    for number in range(VARIANTS if settings.caption_dropout or settings.caption_shuffle else 0):
        rng = random.Random(f"{number} {caption}")
        text = shuffle_tags(caption, rng) if settings.caption_shuffle else caption
        result.append(drop_words(text, settings.caption_dropout, rng))
    return list(filter(None, result))


def shuffle_tags(caption: str, rng: random.Random) -> str:
    """Return the caption with its comma-separated tags in random order. A comma before a digit, as in 1,000, separates nothing."""
    tags = [tag.strip() for tag in re.split(r",(?!\d)", caption)]
    rng.shuffle(tags)
    return ", ".join(filter(None, tags)) or caption


def drop_words(caption: str, share: float, rng: random.Random) -> str:
    """Return the caption without about that share of its words; at least one stays."""
    words = caption.split()
    kept = [word for word in words if rng.random() >= share] or [rng.choice(words)]
    return " ".join(kept).strip(" ,")


def describe_augmentation(settings: DataSettings) -> list[str]:
    """Return notes for the report on a packed set."""
    notes = []
    if len(settings.caption_forms) > 1:
        notes.append(f"every caption in {len(settings.caption_forms)} forms: {', '.join(settings.caption_forms)}")
    how = [f"{settings.caption_dropout:.0%} of the words dropped"] if settings.caption_dropout else []
    how += ["the tags shuffled"] if settings.caption_shuffle else []
    if how:
        notes.append(f"up to {VARIANTS} more of every training caption, with {' and '.join(how)}")
    return notes
