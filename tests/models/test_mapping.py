import pytest
import torch

from gan_t2i.models.mapping import MappingNetwork


def draws(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


Z, SENTENCE = draws(6, 8), draws(6, 12, seed=1)


@pytest.fixture
def mapping():
    torch.manual_seed(0)
    return MappingNetwork(8, 12, 16, layers=2)


def z_path(mapping, z):
    """Return the output of the z path, which truncation interpolates and w_avg averages."""
    recorded = []
    handle = mapping.shared_layers[0].register_forward_pre_hook(lambda module, inputs: recorded.append(inputs[0][:, :16].detach()))
    mapping(z, SENTENCE)
    handle.remove()
    return recorded[0]


def test_shape_and_both_inputs_count(mapping):
    mapping.eval()
    w = mapping(Z, SENTENCE)
    assert w.shape == (6, 16)
    assert (mapping(Z.flip(0), SENTENCE) - w).abs().mean() > 0.05
    assert (mapping(Z, SENTENCE.flip(0)) - w).abs().mean() > 0.05


def test_only_the_direction_of_z_counts(mapping):
    mapping.eval()
    torch.testing.assert_close(mapping(3 * Z, SENTENCE), mapping(Z, SENTENCE))


def test_w_avg_moves_in_training_mode_alone(mapping):
    mapping.eval()
    mapping(Z, SENTENCE)
    assert (mapping.w_avg == 0).all()
    path = z_path(mapping, Z)
    mapping.train()
    mapping(Z, SENTENCE)
    torch.testing.assert_close(mapping.w_avg, 0.002 * path.mean(dim=0))
    assert not mapping.w_avg.requires_grad


def test_w_avg_tends_to_the_mean_of_the_z_path(mapping):
    with torch.no_grad():
        for _ in range(3000):
            mapping(Z, SENTENCE)
    torch.testing.assert_close(mapping.w_avg, z_path(mapping, Z).mean(dim=0), rtol=0.01, atol=1e-3)


def test_truncation_is_a_line_from_w_avg_to_the_z_path(mapping):
    mapping.eval()
    mapping.w_avg.copy_(draws(16, seed=2))
    path = z_path(mapping, Z)
    recorded = []
    mapping.shared_layers[0].register_forward_pre_hook(lambda module, inputs: recorded.append(inputs[0].detach()))
    for psi in (0.0, 0.25, 1.0):
        mapping(Z, SENTENCE, psi)
        torch.testing.assert_close(recorded[-1][:, :16], mapping.w_avg + psi * (path - mapping.w_avg))
        assert torch.equal(recorded[-1][:, 16:], mapping.norm_sentence(SENTENCE)), "truncation touched the sentence"


def test_without_its_z_path_w_still_distinguishes_the_sentences(mapping):
    mapping.eval()
    w, other_z = mapping(Z, SENTENCE, 0.0), mapping(Z.flip(0), SENTENCE, 0.0)
    assert torch.equal(w, other_z)
    full = mapping(Z[:1].expand(6, -1), SENTENCE)
    # the sentences are as far apart as they are for one z
    assert w.std(dim=0).mean().item() == pytest.approx(full.std(dim=0).mean().item(), rel=0.3)
