import pytest
import torch
from torch import nn

from gan_t2i import registry
from gan_t2i.evaluation.match_gap import match_gap
from gan_t2i.models.base import Discriminator
from gan_t2i.models.text_head import TextCondition
from gan_t2i.text.batch import TextBatch


class Oracle(Discriminator):
    """Its logit is 10 where the number in the picture is the number in the caption, else minus their distance."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Flatten()
        self.weight = nn.Parameter(torch.ones(()))
        self.text_head = lambda text: TextCondition(text.tokens, text.mask, text.pooled)
        self.head = lambda features, text: self.weight * self.score(features[:, 0], text.sentence[:, 0])

    @staticmethod
    def score(number, caption):
        return torch.where(number == caption, 10.0, -(number - caption).abs())


def batch(numbers):
    n = len(numbers)
    images = torch.tensor(numbers).reshape(n, 1, 1, 1).expand(n, 3, 2, 2)
    return images, TextBatch(torch.zeros(n, 1, 1), torch.ones(n, 1, dtype=torch.bool), torch.tensor(numbers)[:, None])


def test_the_gap_is_own_less_another_caption_of_the_batch():
    gap = match_gap(Oracle(), *batch([1.0, 2.0, 5.0]))
    assert gap == pytest.approx(10 - (-(4 + 1 + 3) / 3))


def test_a_discriminator_that_ignores_the_text_has_no_gap():
    D = Oracle()
    D.head = lambda features, text: features[:, 0]
    assert match_gap(D, *batch([1.0, 2.0, 5.0])) == 0


def test_text_that_goes_with_the_wrong_picture_has_a_negative_gap():
    images, text = batch([1.0, 2.0])
    assert match_gap(Oracle(), images, text[torch.tensor([1, 0])]) == pytest.approx(-11)


def test_a_real_network_is_left_as_it_was():
    import gan_t2i.models  # noqa: F401 (registers it)

    D = registry.build(
        "discriminator", "resnet", {"channel_max": 8, "text_head": {"width": 8, "layers": 1}}, resolution=16, text_width=4, max_tokens=4
    )
    before = {name: tensor.clone() for name, tensor in D.state_dict().items()}
    text = TextBatch(torch.randn(3, 4, 4), torch.ones(3, 4, dtype=torch.bool), torch.randn(3, 4))
    gap = match_gap(D, torch.randn(3, 3, 16, 16), text)
    assert isinstance(gap, float)
    assert all(p.grad is None for p in D.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in D.state_dict().items())
