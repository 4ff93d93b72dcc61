"""`gan-t2i export`: a snapshot with its model card, ONNX files, and a repository folder."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from gan_t2i import GanT2IError
from gan_t2i.checkpoint import ModelCard, read_info, read_tensors
from gan_t2i.cli.main import command
from gan_t2i.runs import RunFolder
from gan_t2i.sampling import onnx_export
from gan_t2i.sampling.pipeline import Text2Image
from gan_t2i.sampling.publish import card_text


@pytest.fixture
def card(tmp_path: Path) -> Path:
    path = tmp_path / "card.md"
    path.write_text("# Shapes\n\nLicence: CC0. Limits: six colours.\n")
    return path


@pytest.fixture
def repository(trained: RunFolder, card: Path, tmp_path: Path) -> Path:
    """The small run as a repository folder."""
    result = export(
        trained.path, tmp_path / "repository", "--to", "hub", "--card", card, "--licence", "cc0-1.0", "--example", 'a "blue" square'
    )
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1].startswith(f"written: {tmp_path / 'repository'} (")
    return tmp_path / "repository"


def export(*arguments: object) -> Result:
    return CliRunner().invoke(command, ["export", *map(str, arguments)])


def test_a_published_snapshot_knows_its_words(trained: RunFolder, card: Path, tmp_path: Path) -> None:
    file = tmp_path / "shapes.safetensors"
    result = export(trained.path, file, "--card", card, "--example", "a blue square")
    assert result.exit_code == 0, result.output
    info = read_info(file)
    assert info.card is not None
    assert (info.card.text, info.card.example, info.card.styles) == (card.read_text(), "a blue square", ())
    assert {"a", "blue", "purple"} <= set(info.card.words)
    assert read_info(trained.snapshots()[-1]).card is None
    assert {x.dtype for x in read_tensors(file)[0].values()} == {torch.bfloat16}
    model = Text2Image.load(file)
    assert model.unknown_words("A blue Dragon, a dragon") == ["dragon"]
    assert np.asarray(model.generate("a blue square")[0]).std() > 0
    again = tmp_path / "again.safetensors"
    assert export(file, again).exit_code == 0
    assert read_info(again) == info


def test_an_unknown_style_gets_the_known_ones_named(trained: RunFolder, said: list[str]) -> None:
    model = Text2Image.load(trained.path)
    assert model.unknown_words("a dragon") == []
    model.info = replace(model.info, card=ModelCard("", ("apple", "noto", "style"), ("noto", "twemoji")))
    del said[:]
    model.generate("an apple, neon style")
    assert said == ["prompt 'an apple, neon style': never seen in training: 'neon'; its styles are noto, twemoji"]


@pytest.mark.parametrize("form", ["snapshot", "hub"])
def test_a_card_is_needed(trained: RunFolder, tmp_path: Path, form: str) -> None:
    result = export(trained.path, tmp_path / "x", "--to", form)
    assert result.exit_code == 2
    assert "Missing option '--card'" in result.output


def test_a_card_is_text(trained: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "card").write_bytes(b"\xff")
    result = export(trained.path, tmp_path / "x", "--card", tmp_path / "card")
    assert result.exit_code == 2
    assert result.output.splitlines()[-1] == f"Error: --card {tmp_path / 'card'}: it is not UTF-8 text (invalid start byte at byte 0)"


@pytest.mark.parametrize("form", ["snapshot", "onnx", "hub"])
def test_what_cannot_be_made_is_a_sentence(trained: RunFolder, card: Path, form: str) -> None:
    result = export(trained.path, card / "x", "--to", form, "--card", card, "--licence", "mit")
    assert result.exit_code == 2
    assert result.output.splitlines()[-1] == f"Error: cannot write {card / 'x'}: {card} is not a folder that you may write in"


def test_a_repository_needs_a_licence_and_a_new_folder(trained: RunFolder, repository: Path, card: Path, tmp_path: Path) -> None:
    result = export(trained.path, tmp_path / "new", "--to", "hub", "--card", card)
    assert (result.exit_code, (tmp_path / "new").exists()) == (2, False)
    assert "Missing option '--licence'" in result.output
    result = export(trained.path, repository, "--to", "hub", "--card", card, "--licence", "mit")
    assert result.exit_code == 2
    assert result.output.splitlines()[-1] == f"Error: {repository} exists and is not empty; name a new folder, or remove it first"
    result = export(trained.path, tmp_path, "--card", card)
    assert result.exit_code == 2
    assert result.output.splitlines()[-1] == f"Error: {tmp_path} is a folder; name a file"


def test_onnx_takes_the_card(trained: RunFolder, card: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_card(model: Text2Image, folder: Path, name: str) -> None:
        assert name == trained.path.name  # as `serve` calls it
        folder.mkdir()
        (folder / "card").write_text(model.info.card.text if model.info.card else "none")

    monkeypatch.setattr(onnx_export, "export_onnx", write_card)
    assert export(trained.path, "--to", "onnx", tmp_path / "without").exit_code == 0
    assert export(trained.path, "--to", "onnx", tmp_path / "with", "--card", card).exit_code == 0
    assert [(tmp_path / name / "card").read_text() for name in ("without", "with")] == ["none", card.read_text()]


def test_links_out_of_the_folder_become_words() -> None:
    card = ModelCard("See [the recipe](../../configs/a.yaml), [words](words.txt) and [the hub](https://example.org/..).\n")
    assert card_text(card) == "See the recipe, [words](words.txt) and [the hub](https://example.org/..)."


def test_a_repository_is_loaded_like_the_snapshot(trained: RunFolder, repository: Path, card: Path, tmp_path: Path) -> None:
    assert export(trained.path, tmp_path / "x.safetensors", "--card", card).exit_code == 0
    (repository / ".gitattributes").touch()  # the hub's own
    pictures = [np.asarray(Text2Image.load(path).generate("a blue square")[0]) for path in (repository, tmp_path / "x.safetensors")]
    np.testing.assert_array_equal(*pictures)
    info = read_info(repository / "model.safetensors")
    config = json.loads((repository / "config.json").read_text())
    assert config["data_fingerprint"] == info.data_fingerprint
    assert config["generator"]["params"]["channel_max"] == 16
    readme = (repository / "README.md").read_text()
    header, body = readme.removeprefix("---\n").split("---\n", 1)
    assert 'license: "cc0-1.0"\nlibrary_name: gan_t2i\npipeline_tag: text-to-image\n' in header
    assert body.startswith(card.read_text())
    assert info.data_fingerprint in body
    assert "-p 'a \"blue\" square'" in body


def damaged_config(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "nimg": 0}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "README.md").unlink(), "the repository folder {} lacks README.md: it has"),
        (lambda folder: (folder / "model.safetensors").unlink(), "the repository folder {} lacks model.safetensors: it has"),
        (lambda folder: (folder / "more.bin").touch(), "the repository folder {} holds more.bin, which is no part of a model: it has"),
        (lambda folder: (folder / "config.json").write_text("{"), "{}/config.json cannot be read: "),
        (damaged_config, "{}/config.json does not describe {}/model.safetensors: take both from the same export"),
    ],
)
def test_a_repository_is_read_strictly(repository: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(repository)
    with pytest.raises(GanT2IError) as caught:
        Text2Image.load(repository)
    assert str(caught.value).startswith(message.format(repository, repository))
    assert "\n" not in str(caught.value)
