"""`gan-t2i export`: a snapshot with its model card."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from click.testing import CliRunner

from gan_t2i.checkpoint import ModelCard, read_info, read_tensors
from gan_t2i.cli.main import command
from gan_t2i.runs import RunFolder
from gan_t2i.sampling.pipeline import Text2Image


def test_a_published_snapshot_knows_its_words(trained: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "card.md").write_text("# Shapes\n")
    file = tmp_path / "shapes.safetensors"
    arguments = ["export", str(trained.path), str(file), "--card", str(tmp_path / "card.md"), "--example", "a blue square"]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    card = read_info(file).card
    assert card is not None
    assert (card.text, card.example, card.styles) == ("# Shapes\n", "a blue square", ())
    assert {"a", "blue", "purple"} <= set(card.words)
    assert read_info(trained.snapshots()[-1]).card is None
    assert {x.dtype for x in read_tensors(file)[0].values()} == {torch.bfloat16}
    model = Text2Image.load(file)
    assert model.unknown_words("A blue Dragon, a dragon") == ["dragon"]
    assert np.asarray(model.generate("a blue square")[0]).std() > 0


def test_an_unknown_style_gets_the_known_ones_named(trained: RunFolder, said: list[str]) -> None:
    model = Text2Image.load(trained.path)
    assert model.unknown_words("a dragon") == []
    model.info = replace(model.info, card=ModelCard("", ("apple", "noto", "style"), ("noto", "twemoji")))
    del said[:]
    model.generate("an apple, neon style")
    assert said == ["prompt 'an apple, neon style': never seen in training: 'neon'; its styles are noto, twemoji"]


def test_a_card_is_needed(trained: RunFolder, tmp_path: Path) -> None:
    result = CliRunner().invoke(command, ["export", str(trained.path), str(tmp_path / "x.safetensors")])
    assert result.exit_code == 2
    assert "Missing option '--card'" in result.output
