"""Auxiliary losses: registered, configured, checked, and one more of a user's own."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from gan_t2i import registry
from gan_t2i.core.errors import UsageError
from gan_t2i.losses.inputs import MicroBatch, Scores
from gan_t2i.losses.term import KIND, LossTerm, TermConfig
from gan_t2i.training.config import TrainConfig
from gan_t2i.training.session import Session, prepare

Values = Callable[..., dict[str, Any]]


@pytest.fixture
def brightness_term(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A term that is registered for one test: G pays for bright images."""
    monkeypatch.setattr(registry, "_classes", dict(registry._classes))

    @registry.register(KIND, "brightness")
    class BrightnessTerm(LossTerm):
        class Config(TermConfig):
            target: float = -1.0

        def generator_loss(self, batch: MicroBatch, scores: Scores) -> tuple[Tensor, dict[str, Tensor]]:
            loss = (scores.fake.mean() - self.config.target).square()
            return self.config.weight * loss, {"Loss/G/brightness": loss.detach()}

    return iter(())


def make(values: dict[str, Any]) -> Session:
    return prepare(TrainConfig.parse(values))


def test_the_terms_of_the_package_are_registered_with_their_defaults() -> None:
    terms = TrainConfig().terms
    assert {"caption", "layout", "mismatch", "reconstruction"} <= terms.keys()
    assert terms["mismatch"] == {"weight": 1.0, "negatives": ["random"]}
    assert terms["caption"]["weight"] == terms["reconstruction"]["weight"] == 0


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"captoin": {"weight": 1}}, "unknown loss_term 'captoin'; did you mean caption?"),
        ({"caption": {"wieght": 1}}, "unknown config key terms.caption.wieght; did you mean weight?"),
        ({"reconstruction": {"weight": -1}}, "config key terms.reconstruction.weight = -1: input should be greater than or equal to 0"),
        ({"mismatch": 3}, "config key terms.mismatch = 3: input should be a valid dictionary"),
    ],
)
def test_wrong_settings_are_named(terms: Any, message: str) -> None:
    with pytest.raises(UsageError) as error:
        TrainConfig.parse({"terms": terms})
    assert str(error.value) == message


@pytest.mark.usefixtures("brightness_term")
def test_a_term_of_ones_own_needs_no_other_change(small_config: Values) -> None:
    plain, other = make(small_config()), make(small_config(terms={"brightness": {"weight": 3.0}}))
    assert "brightness" not in plain.terms
    metrics = [session.run_step(4) for session in (plain, other)]
    assert "Loss/G/brightness" not in metrics[0]
    expected = metrics[0]["Loss/G/loss"] + 3 * metrics[1]["Loss/G/brightness"]
    torch.testing.assert_close(metrics[1]["Loss/G/loss"], expected)
    assert any(not torch.equal(a, b) for a, b in zip(plain.networks.G.parameters(), other.networks.G.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(plain.networks.D.parameters(), other.networks.D.parameters(), strict=True))
