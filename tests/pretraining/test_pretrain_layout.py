"""The layout predictor is pretrained on real pairs, cached, and not trained by the run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from gan_t2i.checkpoint import load_snapshot, save_snapshot
from gan_t2i.core.errors import UsageError
from gan_t2i.core.files import cache_dir
from gan_t2i.models.base import Generator
from gan_t2i.pretraining import layout as pretraining
from gan_t2i.pretraining.layout import NONE, Vocabulary
from gan_t2i.training.config import TrainConfig
from gan_t2i.training.session import Session, prepare

MakeSession = Callable[..., Session]
HEAD = {"width": 32, "layers": 1, "heads": 2}
PLACED = {
    "name": "style",
    "params": {"channel_base": 128, "channel_max": 16, "w_width": 32, "z_width": 8, "text_head": HEAD, "local_styles": True, "layout": True},
}
BRIEF = {"localizer_kimg": 0.032, "kimg": 0.032, "batch": 8}
COLOURS = {"red": (220, 20, 20), "green": (20, 160, 20), "blue": (30, 60, 230), "black": (10, 10, 10)}


def write(folder: Path, drawn: dict[str, dict[str, int]], captions: dict[str, list[str]], held_out: str) -> Path:
    """Name -> colour -> the left edge of its square in a white picture of 16 pixels; name -> captions."""
    lines = []
    for name, squares in drawn.items():
        picture = Image.new("RGB", (16, 16), "white")
        for colour, x in squares.items():
            picture.paste(COLOURS[colour], (x, 6, x + 4, 10))
        picture.save(folder / f"{name}.png")
        lines.append({"file_name": f"{name}.png", "text": captions[name], "split": "heldout" if name == held_out else "train"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def column(session: Session, caption: str, word: int) -> float:
    """Where from left (0) to right (1) the layout puts a word of a caption, the first being 0."""
    layout = session.networks.G.layout
    assert layout is not None
    places = layout(session.encoder.encode([caption]))[0, 1 + word].exp().view(8, 8)  # after [CLS]
    return float(places.sum(dim=0) @ ((torch.arange(8) + 0.5) / 8))


def test_it_puts_a_word_where_pictures_show_it(make_session: MakeSession, tmp_path: Path) -> None:
    drawn = {f"{colour}-{side}": {colour: x} for colour in COLOURS for side, x in (("left", 2), ("right", 10))}
    captions = {name: [name.replace("-", " ")] for name in drawn}
    source = write(tmp_path, drawn, captions, "blue-right")
    settings = {"localizer_kimg": 1.5, "kimg": 1.5, "learning_rate": 1e-2, "noise": 0.1, "batch": 16}
    session = make_session(data={"source": str(source)}, generator=PLACED, terms={"layout": settings})
    assert column(session, "green left", 0) < 0.4
    assert column(session, "blue right", 0) > 0.6  # which was held out


@pytest.mark.slow
def test_it_learns_who_is_left_from_the_relation_and_the_order_of_names(make_session: MakeSession, tmp_path: Path) -> None:
    drawn = {f"{left}-{right}": {left: 2, right: 10} for left in COLOURS for right in COLOURS.keys() - {left}}
    pairs = {name: name.split("-") for name in drawn}
    captions = {name: [f"{left} left of {right}", f"{right} right of {left}"] for name, (left, right) in pairs.items()}
    source = write(tmp_path, drawn, captions, "blue-red")
    settings = {"localizer_kimg": 4, "kimg": 16, "learning_rate": 1e-3, "noise": 0.1, "batch": 16}
    session = make_session(data={"source": str(source)}, generator=PLACED, terms={"layout": settings})
    for caption, blue, red in (("blue left of red", 0, 3), ("red right of blue", 3, 0)):
        assert column(session, caption, blue) < 0.4, caption
        assert column(session, caption, red) > 0.6, caption


def test_it_is_pretrained_once_for_all_runs_of_the_same_data(make_session: MakeSession, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    pretrain = pretraining.pretrain
    monkeypatch.setattr(pretraining, "pretrain", lambda *arguments: (calls.append(1), pretrain(*arguments)))
    settings = {**BRIEF, "kimg": 0.048}  # of no other test
    first, again = (make_session(generator=PLACED, terms={"layout": settings}).networks for _ in range(2))
    assert len(calls) == 1
    assert all(torch.equal(a, b) for a, b in zip(layout_of(first.G), layout_of(again.G), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(layout_of(first.G), layout_of(again.G_ema), strict=True))
    make_session(generator=PLACED, terms={"layout": {**settings, "noise": 0.2}})
    make_session(generator=PLACED, terms={"layout": settings}, seed=1)
    assert len(calls) == 3


def layout_of(G: Generator) -> list[torch.Tensor]:
    assert G.layout is not None
    return [tensor.clone() for tensor in G.layout.state_dict().values()]


def test_a_damaged_file_is_replaced(make_session: MakeSession, small_config: Callable[..., dict[str, Any]], said: list[str]) -> None:
    settings = {**BRIEF, "kimg": 0.056}
    before = set((cache_dir() / "layouts").glob("*"))
    first = make_session(generator=PLACED, terms={"layout": settings}).networks.G
    [path] = set((cache_dir() / "layouts").glob("*")) - before
    path.write_bytes(path.read_bytes()[:-100])
    again = prepare(TrainConfig.parse(small_config(generator=PLACED, terms={"layout": settings}))).networks.G
    assert any("pretrained again" in line for line in said)
    assert all(torch.equal(a, b) for a, b in zip(layout_of(first), layout_of(again), strict=True))


def test_the_run_leaves_it_alone_and_the_snapshot_has_it(make_session: MakeSession, tmp_path: Path) -> None:
    session = make_session(generator=PLACED, terms={"layout": BRIEF})
    before = layout_of(session.networks.G)
    first = [block.local_style.layout_gain.item() for block in session.networks.G.blocks if block.local_style is not None]
    session.run_step(0)
    layout_gain = [block.local_style.layout_gain.item() for block in session.networks.G.blocks if block.local_style is not None]
    assert all(a != b for a, b in zip(first, layout_gain, strict=True))  # how far it is trusted is trained
    for network in (session.networks.G, session.networks.G_ema):
        assert all(torch.equal(a, b) for a, b in zip(before, layout_of(network), strict=True))
    save_snapshot(tmp_path / "a.safetensors", session.networks.G, session.snapshot_info(4))
    assert all(torch.equal(a, b) for a, b in zip(before, layout_of(load_snapshot(tmp_path / "a.safetensors")[0]), strict=True))


def test_a_run_that_is_only_measured_pretrains_nothing(small_config: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise AssertionError("pretrained")

    monkeypatch.setattr(pretraining, "pretrain", fail)
    config = TrainConfig.parse(small_config(generator=PLACED, terms={"layout": {**BRIEF, "kimg": 0.04}}))
    assert prepare(config, measured=True).networks.G.layout is not None


def test_what_cannot_be_placed_is_refused(small_config: Callable[..., dict[str, Any]]) -> None:
    config = small_config(generator=PLACED)
    config["data"] = {**config["data"], "stream": True}
    with pytest.raises(UsageError, match=r"generator\.params\.layout needs the whole data set packed"):
        TrainConfig.parse(config)
    with pytest.raises(UsageError, match="layout biases local styles"):
        TrainConfig.parse(small_config(generator={"name": "style", "params": {"layout": True}}))


def test_rare_tokens_are_not_placed(make_session: MakeSession) -> None:
    session = make_session()
    every, few = (Vocabulary(session.dataset, session.encoder, most) for most in (2000, 4))
    [caption] = session.dataset.caption_ids[session.dataset.train[0]][:1]
    shown = torch.tensor([caption])
    length = session.encoder.count_tokens([session.dataset.captions[caption]])[0]
    assert few.size == 4 < every.size
    assert every.tokens(shown, length + 1)[0, -1] == NONE
    assert NONE not in every.tokens(shown, length)[0].tolist()
    assert NONE in few.tokens(shown, length)[0].tolist()
    assert every.present(shown).sum() == len(set(every.tokens(shown, length)[0].tolist()))
    assert few.present(shown).shape == (1, 4)
