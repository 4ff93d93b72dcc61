import pytest
import torch

from gan_t2i.core import files
from gan_t2i.core.errors import GanT2IError
from gan_t2i.text import cache as cache_module
from gan_t2i.text.cache import TextCache, cache_key
from gan_t2i.text.encoder import build_encoder, interface_for


@pytest.fixture
def encoded(tiny, monkeypatch):
    """The captions that the tiny encoder is asked to encode."""
    asked, encode = [], tiny.encode

    def counting(captions):
        asked.extend(captions)
        return encode(captions)

    monkeypatch.setattr(tiny, "encode", counting)
    return asked


def build(encoder, captions, **kwargs):
    return TextCache.build(encoder, captions, **kwargs)


def shards():
    return sorted((files.cache_dir() / "text").rglob("shard_*"))


def test_cached_equals_fresh(tiny, captions):
    repeated = [*captions, captions[0]]
    fresh = tiny.encode(repeated)
    for _ in range(2):  # just written, and read again
        cache = build(tiny, repeated)
        batch = cache.gather(torch.arange(len(repeated)))
        assert torch.equal(batch.mask, fresh.mask)
        torch.testing.assert_close(batch.pooled, fresh.pooled)
        assert batch.tokens.dtype == torch.float32
        torch.testing.assert_close(batch.tokens, fresh.tokens, atol=1e-4, rtol=1e-3)
        assert (cache.width, cache.max_tokens, len(cache), cache.cut) == (64, 48, 7, 0)


def test_gather_takes_any_order_and_pads_to_the_longest(tiny, captions):
    cache = build(tiny, captions)
    batch = cache.gather([2, 5, 2])
    assert batch.mask.sum(1).tolist() == tiny.count_tokens([captions[i] for i in (2, 5, 2)])
    assert batch.tokens.shape == (3, 5, 64)
    assert torch.equal(batch.tokens[0], batch.tokens[2])
    assert len(cache.gather([])) == 0
    with pytest.raises(IndexError):
        cache.gather([len(captions)])
    # A gathered batch is the caller's own: writing to it must not reach the cache.
    batch.tokens.zero_()
    assert cache.gather([2]).tokens.abs().sum() > 0


def test_pooled_vectors_come_alone_too(tiny, captions, monkeypatch):
    monkeypatch.setattr(cache_module, "SHARD_CAPTIONS", 3)
    monkeypatch.setattr(cache_module, "BATCH_SIZE", 2)
    cache = build(tiny, captions)
    assert len(shards()) > 1
    pooled = cache.pooled([4, 0, 4])
    assert torch.equal(pooled, cache.gather([4, 0, 4]).pooled)
    assert not torch.equal(pooled[0], pooled[1])
    pooled.zero_()  # the caller's own
    assert cache.pooled([4]).abs().sum() > 0


def test_only_new_captions_are_encoded(tiny, captions, encoded):
    build(tiny, captions[:3])
    assert sorted(encoded) == sorted(captions[:3])
    encoded.clear()
    cache = build(tiny, [*captions, captions[3]])
    assert sorted(encoded) == sorted(captions[3:])
    encoded.clear()
    build(tiny, captions[::-1])
    assert encoded == []
    torch.testing.assert_close(cache.gather([4]).tokens, tiny.encode([captions[4]]).tokens, atol=1e-4, rtol=1e-3)


def test_a_changed_encoder_never_reads_a_stale_cache(tiny, captions):
    keys = {cache_key(tiny)}
    for params in ({"seed": 1}, {"max_tokens": 40}, {"layers": 1}):
        other = build_encoder("tiny", params, interface_for("tiny", params, captions))
        keys.add(cache_key(other))
    keys.add(cache_key(build_encoder("tiny", {}, interface_for("tiny", {}, captions[:2]))))
    assert len(keys) == 5
    assert cache_key(tiny) == cache_key(build_encoder("tiny", {}, interface_for("tiny", {}, captions)))


@pytest.mark.parametrize("damage", [lambda data: data[:-7], lambda data: data[:200] + b"x" + data[201:], lambda data: b""])
def test_damaged_shard_is_recomputed(tiny, captions, encoded, damage, said):
    build(tiny, captions[:2])
    (bad,) = shards()
    build(tiny, captions)
    bad.write_bytes(damage(bad.read_bytes()))
    encoded.clear()
    cache = build(tiny, captions)
    assert sorted(encoded) == sorted(captions[:2])
    assert len(said) == 1
    assert "damaged" in said[0]
    torch.testing.assert_close(cache.gather([0, 1]).tokens, tiny.encode(captions[:2]).tokens, atol=1e-4, rtol=1e-3)
    encoded.clear()
    build(tiny, captions)
    assert (encoded, len(said)) == ([], 1)


def test_shards_are_cut_and_a_second_writer_does_no_harm(tiny, captions, monkeypatch):
    monkeypatch.setattr(cache_module, "SHARD_CAPTIONS", 2)
    monkeypatch.setattr(cache_module, "BATCH_SIZE", 2)
    build(tiny, captions)
    names = shards()
    assert len(names) == 3
    # Another process that saw the empty folder writes the same content under the same names.
    monkeypatch.setattr(cache_module, "_read_all", lambda folder: [])
    cache = build(tiny, captions)
    assert shards() == names
    torch.testing.assert_close(cache.gather(range(len(captions))).pooled, tiny.encode(captions).pooled)


def test_cut_captions_are_reported(captions, said):
    params = {"max_tokens": 6}
    encoder = build_encoder("tiny", params, interface_for("tiny", params, captions))
    for _ in range(2):  # the lengths come from the shards the second time
        said.clear()
        cache = build(encoder, captions)
        assert cache.cut == sum(length > 6 for length in encoder.count_tokens(captions)) == 4
        assert said == [
            f"4 of 6 captions are longer than 6 tokens (the longest has {max(encoder.count_tokens(captions))}) and were cut there: "
            f"shorten them or raise text_encoder.params.max_tokens"
        ]


def test_no_captions(tiny):
    cache = build(tiny, [])
    assert (len(cache), cache.cut, shards()) == (0, 0, [])


def test_unwritable_cache_gets_one_sentence(tiny, captions, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GAN_T2I_CACHE", str(tmp_path / "file"))
    with pytest.raises(GanT2IError, match=r"cannot be written .* GAN_T2I_CACHE"):
        build(tiny, captions)


def test_numbers_beyond_float16_are_refused(tiny, captions, monkeypatch):
    batch = tiny.encode(captions[:1])
    huge = cache_module.TextBatch(batch.tokens * 1e6, batch.mask, batch.pooled)
    monkeypatch.setattr(tiny, "encode", lambda captions: huge)
    with pytest.raises(GanT2IError, match="float16"):
        build(tiny, captions[:1])
    assert shards() == []
