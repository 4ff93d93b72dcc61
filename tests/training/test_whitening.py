"""Text heads that whiten do it by the captions that are trained on, in a run and in what it leaves."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from gan_t2i.checkpoint import load_snapshot, save_snapshot
from gan_t2i.training.config import TrainConfig
from gan_t2i.training.session import Session, prepare

HEAD = {"width": 32, "layers": 1, "heads": 2, "whiten": True}
SMALL = {"channel_base": 128, "channel_max": 16, "text_head": HEAD}


@pytest.fixture(scope="module")
def session(small_config: Callable[..., dict[str, Any]]) -> Session:
    values = small_config(
        generator={"name": "style", "params": {**SMALL, "w_width": 32, "z_width": 8, "word_resolutions": [8]}},
        discriminator={"name": "aligned", "params": SMALL},
    )
    return prepare(TrainConfig.parse(values))


def test_all_networks_whiten_by_the_training_captions_alone(session: Session) -> None:
    trained = sorted({caption for item in session.dataset.train.tolist() for caption in session.dataset.caption_ids[item]})
    text = session.cache.gather(trained)
    assert len(trained) < len(session.dataset.captions)
    for network in (session.networks.G, session.networks.D, session.networks.G_ema):
        torch.testing.assert_close(network.text_head.norm_pooled.mean, text.pooled.mean(dim=0), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(network.text_head.norm_tokens.mean, text.tokens[text.mask].mean(dim=0), atol=1e-5, rtol=1e-4)


def test_a_snapshot_draws_what_the_run_draws(session: Session, tmp_path: Any) -> None:
    save_snapshot(tmp_path / "snapshot.safetensors", session.networks.G_ema, session.snapshot_info(0))
    loaded, _ = load_snapshot(tmp_path / "snapshot.safetensors")
    z, text = torch.randn(2, loaded.z_width), session.cache.gather([0, 1])
    with torch.no_grad():
        torch.testing.assert_close(loaded(z, text), session.networks.G_ema(z, text))
