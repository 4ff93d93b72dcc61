"""One tiny encoder for the whole folder; the cache, the hub's cache and the network are out of reach."""

import pytest

from gan_t2i.text import encoder

CAPTIONS = [
    "a red circle left of a blue square",
    "a blue square left of a red circle",
    "a green star",
    "a green star above two small yellow crosses on a dark ground",
    "红色圆形在蓝色方块左边",
    "",
]


@pytest.fixture(scope="session")
def captions():
    return list(CAPTIONS)


@pytest.fixture(scope="session")
def tiny():
    return build_tiny()


def build_tiny(**params):
    return encoder.build_encoder("tiny", params, encoder.interface_for("tiny", params, CAPTIONS))


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    import huggingface_hub.constants

    def no_network(*args, **kwargs):
        raise ConnectionError("no network in tests")

    monkeypatch.setenv("GAN_T2I_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", no_network)


@pytest.fixture(scope="session")
def saved(tiny, tmp_path_factory):
    """The tiny encoder as a sentence-transformers folder."""
    folder = tmp_path_factory.mktemp("saved") / "my-encoder"
    tiny.model.save(str(folder), create_model_card=False)
    return folder
