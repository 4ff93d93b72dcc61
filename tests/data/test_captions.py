"""Caption augmentation follows from the plain caption, comes after it, and leaks nothing held out."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gan_t2i.core.errors import UsageError
from gan_t2i.data.batches import open_batches
from gan_t2i.data.captions import VARIANTS, drop_words, shuffle_tags, variants
from gan_t2i.data.packing import PackedDataset, pack
from gan_t2i.data.settings import DataConfig, DataSettings

Pack = Callable[..., PackedDataset]
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


@pytest.fixture
def packed(tmp_path: Path) -> Pack:
    """Pack pictures with these captions, (text or texts, split) each."""

    def make(*rows: tuple[Any, str], **settings: Any) -> PackedDataset:
        source = tmp_path / "source"
        source.mkdir(exist_ok=True)
        lines = []
        for index, (text, split) in enumerate(rows):
            Image.new("RGB", (16, 16), (index, 0, 0)).save(source / f"{index}.png")
            lines.append(json.dumps({"file_name": f"{index}.png", "text": text, "split": split}))
        (source / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
        name = f"packed {len(list(tmp_path.iterdir()))}"
        return pack(source, tmp_path / name, 16, DataSettings(**settings), progress=False)

    return make


def captions_of(dataset: PackedDataset) -> list[list[str]]:
    return [[dataset.captions[number] for number in ids] for ids in dataset.caption_ids]


def test_every_caption_in_every_form_and_plain_first(packed: Pack) -> None:
    rows = ((["red apple", "{} {0} braces"], "train"), ("pear", "heldout"))
    dataset = packed(*rows, caption_forms=("{}", "an icon of {}", "{}, drawn"))
    assert captions_of(dataset) == [
        [
            "red apple",
            "{} {0} braces",
            "an icon of red apple",
            "an icon of {} {0} braces",
            "red apple, drawn",
            "{} {0} braces, drawn",
        ],
        ["pear", "an icon of pear", "pear, drawn"],
    ]
    assert dataset.report.captions == 9
    assert "every caption in 3 forms: {}, an icon of {}, {}, drawn" in dataset.report.notes


def test_words_are_dropped_and_tags_shuffled_in_training_captions_alone(packed: Pack) -> None:
    rows = ((["red, round, sweet apple", "an apple"], "train"), ("green, long pear", "heldout"))
    dataset = packed(*rows, caption_dropout=0.3, caption_shuffle=True)
    trained, heldout = captions_of(dataset)
    assert trained[:2] == ["red, round, sweet apple", "an apple"]
    assert 2 < len(trained) <= 2 * (1 + VARIANTS)
    assert len(set(trained)) == len(trained)
    assert all(set(text.replace(",", "").split()) <= {"red", "round", "sweet", "apple", "an"} for text in trained)
    assert heldout == ["green, long pear"]
    assert dataset.report.notes[-1] == "up to 3 more of every training caption, with 30% of the words dropped and the tags shuffled"


def test_variants_come_in_every_form(packed: Pack) -> None:
    dataset = packed(("a, b, c, d", "train"), ("e", "train"), caption_forms=("{}", "icon: {}"), caption_shuffle=True)
    (first, *_) = captions_of(dataset)
    plain = [text for text in first if not text.startswith("icon: ")]
    assert plain[0] == "a, b, c, d"
    assert len(plain) > 1
    assert first == plain + [f"icon: {text}" for text in plain]


def test_no_further_caption_is_on_the_other_side(packed: Pack) -> None:
    """Neither a form nor a variant of a training caption is a held-out caption, or the reverse."""
    rows = (("apple", "train"), ("red apple", "heldout"), ("pear", "train"))
    assert captions_of(packed(*rows, caption_forms=("{}", "red {}"))) == [["apple"], ["red apple", "red red apple"], ["pear", "red pear"]]
    rows = (("red apple", "train"), ("apple", "heldout"))
    assert captions_of(packed(*rows, caption_forms=("{}", "red {}"))) == [["red apple", "red red apple"], ["apple"]]
    rows = (("red sweet apple", "train"), ("red apple", "heldout"), ("sweet apple", "heldout"), ("red sweet", "heldout"))
    for share in (0.1, 0.3, 0.5, 0.8):
        first, *others = captions_of(packed(*rows, caption_dropout=share))
        assert first[0] == "red sweet apple"
        assert not {"red apple", "sweet apple", "red sweet"} & set(first)
        assert others == [["red apple"], ["sweet apple"], ["red sweet"]]


def test_augmentation_changes_no_split_and_no_plain_caption(packed: Pack) -> None:
    rows = [(f"{a} {b}, {b} and {a}", None) for a in WORDS for b in WORDS]
    plain, dropped = packed(*rows, holdout_fraction=0.2), packed(*rows, holdout_fraction=0.2, caption_dropout=0.5, caption_shuffle=True)
    assert plain.train.tolist() == dropped.train.tolist()
    assert plain.heldout.tolist() == dropped.heldout.tolist()
    assert [texts[0] for texts in captions_of(plain)] == [texts[0] for texts in captions_of(dropped)]
    heldout = {text for item in dropped.heldout.tolist() for text in captions_of(dropped)[item]}
    assert len(heldout) == len(dropped.heldout)
    assert not heldout & {text for item in dropped.train.tolist() for text in captions_of(dropped)[item]}


def test_each_setting_is_another_data_set_and_packing_is_reproducible(packed: Pack) -> None:
    rows = (("one, two, three, four, five", "train"), ("six", "heldout"))
    choices: list[dict[str, Any]] = [{}, {"caption_forms": ("{}", "my {}")}, {"caption_dropout": 0.4}, {"caption_shuffle": True}]
    prints = [packed(*rows, **settings).fingerprint for settings in choices]
    assert len(set(prints)) == 4
    assert [packed(*rows, **settings).fingerprint for settings in choices] == prints


def test_words_are_dropped_at_their_rate_in_order_and_one_stays() -> None:
    rng = random.Random(0)
    texts = [drop_words(" ".join(WORDS), 0.25, rng) for _ in range(400)]
    kept = [text.split() for text in texts]
    assert 7.3 < sum(map(len, kept)) / len(kept) < 7.7
    assert all(words == [word for word in WORDS if word in words] for words in kept)
    assert {drop_words("just two", 0.999, rng) for _ in range(50)} == {"just", "two"}
    assert drop_words("red, round", 0.0, rng) == "red, round"
    assert not any(drop_words("red, round, apple", 0.5, rng).endswith(",") for _ in range(50))


def test_tags_are_shuffled_whole() -> None:
    shuffled = {shuffle_tags("a red cat, 1,000 stars,blue", random.Random(seed)) for seed in range(60)}
    tags = ("a red cat", "1,000 stars", "blue")
    assert shuffled == {", ".join((a, b, c)) for a in tags for b in tags for c in tags if len({a, b, c}) == 3}
    assert shuffle_tags("no tags here", random.Random(0)) == "no tags here"


def test_variants_follow_from_the_text_alone_and_are_none_where_both_are_off() -> None:
    settings = DataSettings(caption_dropout=0.5, caption_shuffle=True)
    first = variants("red, round, sweet apple", settings)
    assert first == variants("red, round, sweet apple", settings)
    assert len(first) == VARIANTS
    assert variants("red, round, sweet apple", DataSettings()) == []
    assert variants(",", settings) == []


def test_one_change_negatives_need_whole_captions(pictures: Path) -> None:
    with pytest.raises(UsageError, match=r"one_change negatives need data\.caption_dropout = 0"):
        open_batches(DataConfig(source=str(pictures), caption_dropout=0.1), 16, ("one_change",))


@pytest.mark.parametrize(
    ("name", "value"), [("caption_forms", ("{}", "an icon of {}")), ("caption_dropout", 0.1), ("caption_shuffle", True), ("alpha", True)]
)
def test_a_stream_takes_captions_and_pictures_as_they_are(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"data\.{name} needs the whole data set packed, and data\.stream"):
        DataConfig.parse({"stream": True, name: value}, where="data")


@pytest.mark.parametrize("forms", [(), ("a {}",), ("{}", "no caption"), ("{}", "{} and {}"), ("a {}", "{}")])
def test_forms_hold_one_caption_and_begin_plain(forms: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match=r"config key data.caption_forms: .* must begin with the plain \"\{\}\", and each form must have one"):
        DataSettings.parse({"caption_forms": forms}, where="data")


def test_no_share_of_words_beyond_all() -> None:
    with pytest.raises(UsageError, match=r"config key data\.caption_dropout = 1"):
        DataSettings.parse({"caption_dropout": 1}, where="data")
