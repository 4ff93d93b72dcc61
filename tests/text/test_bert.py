"""The reader of BERT against the library, and what it leaves to it."""

import importlib.metadata
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gan_t2i.text import weights
from gan_t2i.text.bert import Bert
from gan_t2i.text.encoder import PretrainedEncoder, _pipeline_hash, build_encoder, load

LONG = "two blue squares above a green star " * 40


@pytest.fixture(scope="module")
def folder() -> Path:
    try:
        importlib.metadata.distribution(weights.MINILM.name)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the offline weights are not installed")
    found = weights.find_local()
    assert found is not None
    return found.path


@pytest.mark.parametrize("group", [["a red circle"], ["", "Zebra猫 straße", LONG, "[SEP] a\tb"]], ids=["one", "several"])
def test_it_is_the_library_bit_for_bit(folder: Path, group: list[str]) -> None:
    ours, theirs = Bert.read(folder), load(folder)
    assert ours is not None
    ours.max_seq_length = theirs.max_seq_length = 64
    with torch.no_grad():
        found, expected = ours(ours.preprocess(group)), theirs(theirs.preprocess(group))
    mask = expected["attention_mask"].bool()
    assert torch.equal(found["attention_mask"].bool(), mask)
    assert torch.equal(found["token_embeddings"][mask], expected["token_embeddings"][mask])
    assert torch.equal(found["sentence_embedding"], expected["sentence_embedding"])
    counted = theirs.tokenizer(group, truncation=False, padding=False, verbose=False)["input_ids"]
    assert ours.count_tokens(group) == list(map(len, counted))


def test_caches_and_runs_of_the_library_stay_valid(folder: Path) -> None:
    encoder = build_encoder("sentence-transformer", {}, {})
    assert isinstance(encoder.model, Bert)
    assert encoder.pipeline_hash == _pipeline_hash(load(folder))


def _edit(file: str, **values: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        found = json.loads((folder / file).read_text(encoding="utf-8"))
        (folder / file).write_text(json.dumps({**found, **values}), encoding="utf-8")

    return edit


@pytest.mark.parametrize(
    "change",
    [
        _edit("config.json", model_type="roberta"),
        _edit("config.json", hidden_act="relu"),
        _edit("config.json", position_embedding_type="relative_key"),
        _edit("config.json", is_decoder=True),
        _edit("config.json", num_hidden_layers=7),
        _edit("sentence_bert_config.json", do_lower_case=True),
        _edit("1_Pooling/config.json", pooling_mode_cls_token=True),
        _edit("1_Pooling/config.json", pooling_mode_mean_tokens=False),
        lambda folder: (folder / "tokenizer.json").unlink(),
        lambda folder: (folder / "modules.json").write_text("[]"),
    ],
    ids=["roberta", "relu", "relative", "decoder", "deeper", "lower", "cls", "no mean", "no tokenizer", "no modules"],
)
def test_what_is_anything_else_is_left_to_the_library(folder: Path, tmp_path: Path, change: Callable[[Path], None]) -> None:
    copy = tmp_path / "model"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("model.safetensors"))
    (copy / "model.safetensors").symlink_to(folder / "model.safetensors")
    assert Bert.read(copy) is not None
    change(copy)
    assert Bert.read(copy) is None


def test_drawing_does_not_import_the_library(modules_of_a_drawing: set[str]) -> None:
    assert not {"sentence_transformers", "transformers", "sklearn", "tensorboard", "datasets", "torchvision"} & modules_of_a_drawing


def test_the_encoder_falls_back_to_the_library(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bert, "read", classmethod(lambda cls, folder: None))
    encoder = build_encoder("sentence-transformer", {"model": str(folder)}, {})
    assert isinstance(encoder, PretrainedEncoder)
    assert not isinstance(encoder.model, Bert)
    plain = encoder.encode(["a red circle"])
    monkeypatch.undo()
    assert torch.equal(build_encoder("sentence-transformer", {"model": str(folder)}, {}).encode(["a red circle"]).tokens, plain.tokens)
