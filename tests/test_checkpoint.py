import json
import re
import struct
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import safetensors
import torch
from safetensors.torch import save_file

import gan_t2i.models  # noqa: F401 (registers what the snapshots name)
from gan_t2i import __version__, checkpoint
from gan_t2i.checkpoint import (
    FORMAT_VERSION,
    BuildSpec,
    EncoderRecord,
    SnapshotInfo,
    load_snapshot,
    read_info,
    read_tensors,
    save_snapshot,
    write_tensors,
)
from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.text.batch import TextBatch

PARAMS = {"channel_base": 64, "channel_max": 4, "w_width": 4, "z_width": 4, "text_head": {"width": 4, "layers": 1, "heads": 2}}
INFO = SnapshotInfo(
    generator=BuildSpec("generator", "style", PARAMS, {"resolution": 16, "text_width": 4, "max_tokens": 4}),
    encoder=EncoderRecord(
        BuildSpec("text_encoder", "tiny", {"width": 4}, {"vocabulary": ["a", "红"]}), id="tiny/é", revision=None, weights_hash="ab" * 32
    ),
    nimg=123_456,
    data_fingerprint="cd" * 32,
    data_name="icons",
)


@pytest.fixture
def generator():
    torch.manual_seed(0)
    return INFO.generator.build()


@pytest.fixture
def snapshot(tmp_path, generator):
    path = tmp_path / "snapshots" / "snapshot.safetensors"
    save_snapshot(path, generator, INFO)
    return path


def header(path: Path) -> tuple[dict, bytes]:
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def metadata(path: Path) -> dict:
    return json.loads(header(path)[0]["__metadata__"]["gan_t2i"])


def rewrite(path: Path, values: object) -> Path:
    """Replace the metadata and keep the tensors."""
    head, body = header(path)
    head["__metadata__"]["gan_t2i"] = values if isinstance(values, str) else json.dumps(values)
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


def refusal(path: Path) -> str:
    """Return the sentence with which a snapshot is refused."""
    with pytest.raises(GanT2IError) as error:
        load_snapshot(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    return str(error.value)


def test_weights_and_info_come_back_as_they_were(snapshot, generator):
    loaded, info = load_snapshot(snapshot)
    assert info == INFO
    assert info.resolution == 16
    assert info.versions == {"gan_t2i": __version__, "torch": torch.__version__}
    assert loaded.state_dict().keys() == generator.state_dict().keys()
    assert all(torch.equal(tensor, generator.state_dict()[name]) for name, tensor in loaded.state_dict().items())


def test_a_loaded_generator_gives_the_same_images_and_is_frozen(snapshot, generator):
    loaded, _ = load_snapshot(snapshot)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    text = TextBatch(torch.randn(1, 2, 4), torch.ones(1, 2, dtype=torch.bool), torch.randn(1, 4))
    z = torch.randn(1, 4)
    assert torch.equal(loaded(z, text, 0.5), generator.eval()(z, text, 0.5))


def test_half_precision_halves_the_file_and_rounds_the_weights(tmp_path, snapshot, generator):
    _, info = load_snapshot(snapshot)
    small = tmp_path / "small.safetensors"
    save_snapshot(small, generator, info, torch.bfloat16)
    weights = sum(tensor.numel() for tensor in generator.state_dict().values())
    assert snapshot.stat().st_size - small.stat().st_size == pytest.approx(2 * weights, abs=200)  # beside the names and shapes
    loaded, read = load_snapshot(small)
    assert read == info
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, generator.state_dict()[name].bfloat16().float()), name


def test_a_snapshot_holds_the_generator_alone_and_says_so_in_json(snapshot, generator):
    with safetensors.safe_open(snapshot, framework="pt") as file:
        assert set(file.keys()) == set(generator.state_dict())
        values = json.loads(file.metadata()["gan_t2i"])
    assert values["type"] == "snapshot"
    assert values["format_version"] == FORMAT_VERSION
    assert values["generator"] == {"kind": "generator", "name": "style", "params": PARAMS, "interface": INFO.generator.interface}
    assert values["encoder"]["weights_hash"] == "ab" * 32


def test_weights_in_another_memory_layout_come_back_as_they_were(tmp_path, generator):
    save_snapshot(tmp_path / "x", generator.to(memory_format=torch.channels_last), INFO)
    loaded, _ = load_snapshot(tmp_path / "x")
    assert all(torch.equal(tensor, generator.state_dict()[name]) for name, tensor in loaded.state_dict().items())


# Files that are not snapshots


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_is_refused_and_never_run(tmp_path):
    torch.save({"G": Malicious(tmp_path / "touched")}, tmp_path / "snapshot.pt")
    assert "pickled checkpoints are never loaded" in refusal(tmp_path / "snapshot.pt")
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("content", [b"", b"\x00", bytes(range(256)) * 8, b"\xff" * 64, struct.pack("<Q", 2) + b"{}"])
def test_other_bytes_are_refused(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    assert "safetensors file" in refusal(tmp_path / "x")


@pytest.mark.parametrize("fraction", [0.0005, 0.01, 0.5, 0.999])
def test_a_file_cut_anywhere_is_refused(snapshot, fraction):
    content = snapshot.read_bytes()
    snapshot.write_bytes(content[: int(len(content) * fraction)])
    assert "is not a safetensors file, or is damaged" in refusal(snapshot)


def test_a_file_that_is_not_there_is_the_callers_mistake(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(UsageError, match=f"no such file: {path}"):
            load_snapshot(path)


def test_safetensors_of_other_programs_are_refused(tmp_path):
    for values in (None, {"format": "pt"}):
        save_file({"weight": torch.zeros(2)}, tmp_path / "x", metadata=values)
        assert "not one that gan_t2i wrote: it has no gan_t2i metadata" in refusal(tmp_path / "x")


@pytest.mark.parametrize("values", ["null", "[]", '"snapshot"', "3", "{", ""])
def test_metadata_that_are_not_a_mapping_are_refused(snapshot, values):
    assert str(snapshot) in refusal(rewrite(snapshot, values))


def test_a_training_state_is_not_a_snapshot(tmp_path):
    write_tensors(tmp_path / "state", {"G/weight": torch.zeros(2)}, {"type": "training state", "format_version": 1})
    assert "is not a snapshot of gan_t2i but its training state; name a file under snapshots/" in refusal(tmp_path / "state")


@pytest.mark.parametrize(("versions", "writer"), [({"gan_t2i": "9.1"}, "9.1"), ({}, "unknown"), ([], "unknown"), (None, "unknown")])
@pytest.mark.parametrize("version", [0, FORMAT_VERSION + 1, "2", None])
def test_another_format_version_is_refused_with_what_to_do(snapshot, version, versions, writer):
    message = refusal(rewrite(snapshot, {**metadata(snapshot), "format_version": version, "versions": versions}))
    assert (
        f"has format version {version}; gan_t2i {__version__} reads {FORMAT_VERSION}: install the version that wrote it ({writer})" in message
    )


# Format version 1


def version_1(path: Path, **text_head: object) -> tuple[Path, dict[str, torch.Tensor]]:
    """Write a snapshot of version 1, of a generator with a layout predictor; return its path and the weights under their current names."""
    params = {**PARAMS, "word_resolutions": [4], "local_styles": True}
    torch.manual_seed(0)
    generator = replace(INFO.generator, params={**params, "layout": True}).build()
    with torch.no_grad():
        generator.blocks[0].local_style.layout_gain.fill_(0.5)
    weights = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    assert any(name.startswith("layout.") for name in weights)
    assert "blocks.0.local_style.layout_gain" in weights
    old = {re.sub(r"^layout\.", "placer.", name).replace("local_style.layout_gain", "local_style.trust"): x for name, x in weights.items()}
    old_params = {**params, "placer": True, "text_head": {**PARAMS["text_head"], **text_head}}
    info = replace(INFO, generator=replace(INFO.generator, params=old_params), format_version=1)
    write_tensors(path, old, {"type": "snapshot", **asdict(info)})
    return path, weights


@pytest.mark.parametrize("text_head", [{}, {"whiten": False}], ids=["before whitening", "not whitened"])
def test_version_1_is_read_under_the_current_names(tmp_path, text_head):
    loaded, info = load_snapshot(version_1(tmp_path / "x", **text_head)[0])
    assert info.format_version == FORMAT_VERSION
    assert info.generator.params["layout"] is True
    assert info.generator.params["text_head"] == PARAMS["text_head"]
    assert "placer" not in info.generator.params
    _, weights = version_1(tmp_path / "y")
    assert loaded.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.state_dict().items())


def test_version_1_is_written_again_as_today_s(tmp_path):
    loaded, info = load_snapshot(version_1(tmp_path / "old")[0])
    save_snapshot(tmp_path / "new", loaded, info)
    again, read = load_snapshot(tmp_path / "new")
    assert read == info
    assert metadata(tmp_path / "new")["format_version"] == FORMAT_VERSION
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in again.state_dict().items())


def test_whitened_text_heads_of_version_1_are_refused(tmp_path):
    message = refusal(version_1(tmp_path / "x", whiten=True)[0])
    assert f"has whitened text heads, which gan_t2i {__version__} no longer has: use the version that wrote it" in message


def test_the_removed_generator_of_version_1_is_named(tmp_path):
    path, _ = version_1(tmp_path / "x")
    values = metadata(path)
    values["generator"]["name"] = "adaptive"
    assert "unknown generator 'adaptive'" in refusal(rewrite(path, values))


# Weights that do not fit


def with_tensors(path: Path, change) -> Path:
    tensors, values = read_tensors(path)
    change(tensors)
    write_tensors(path, tensors, values)
    return path


def test_a_missing_tensor_is_named(snapshot):
    assert refusal(with_tensors(snapshot, lambda t: t.pop("constant"))) == f"{snapshot} lacks the tensor constant"


def test_an_unknown_tensor_is_named(snapshot):
    assert "holds a tensor surplus that its network does not have" in refusal(
        with_tensors(snapshot, lambda t: t.update(surplus=torch.zeros(1)))
    )


def test_a_wrong_shape_is_named(snapshot):
    message = refusal(with_tensors(snapshot, lambda t: t.update(constant=torch.zeros(1, 3, 4, 4))))
    assert "tensor constant has shape [1, 3, 4, 4], its network needs [1, 4, 4, 4]" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_number_that_is_not_finite_is_enough(snapshot, value):
    def spoil(tensors):
        tensors["mapping.w_avg"][2] = value

    assert "tensor mapping.w_avg holds numbers that are not finite" in refusal(with_tensors(snapshot, spoil))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_another_number_format_is_named(snapshot, dtype):
    message = refusal(with_tensors(snapshot, lambda t: t.update(constant=t["constant"].to(dtype))))
    assert f"tensor constant holds {dtype}, its network needs torch.float32" in message


# Metadata that do not fit


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "stile"}, "unknown generator 'stile'; did you mean style?"),
        ({"params": {**PARAMS, "chanel_max": 3}}, "unknown config key generator.params.chanel_max; did you mean channel_max?"),
        ({"params": {**PARAMS, "w_width": "wide"}}, "config key generator.params.w_width = 'wide'"),
    ],
)
def test_a_generator_that_this_version_lacks_is_named(snapshot, changes, message):
    values = metadata(snapshot)
    values["generator"] |= changes
    assert f"cannot be built by gan_t2i {__version__}: {message}" in refusal(rewrite(snapshot, values))


def key_paths(values: dict, above: tuple = ()) -> list[tuple]:
    """Return the path of every key, at every depth."""
    result = []
    for key, value in values.items():
        result.append((*above, key))
        if isinstance(value, dict):
            result += key_paths(value, (*above, key))
    return result


def refusal_if_any(path: Path) -> str | None:
    """Return the sentence with which a snapshot is refused, or None if it loads."""
    try:
        load_snapshot(path)
    except GanT2IError:
        return refusal(path)
    return None


MISSING = "<missing>"


@pytest.mark.parametrize("bad", [MISSING, None, -1, 0, 7, 1000, 1e400, True, "", "x", [], [1], {}, {"a": {}}], ids=repr)
def test_damaged_metadata_are_refused_whatever_the_damage(snapshot, bad):
    good = metadata(snapshot)
    for key_path in key_paths(good):
        values = deepcopy(good)
        inner = values
        for key in key_path[:-1]:
            inner = inner[key]
        if bad is MISSING:
            del inner[key_path[-1]]
        else:
            inner[key_path[-1]] = bad
        rewrite(snapshot, values)
        if refusal_if_any(snapshot) is None:
            # Settings and the card may be left out; the encoder's own, and which versions wrote it, are for others to check.
            free = (
                "params" in key_path[:-1]
                or key_path == ("card",)
                or (key_path[0] == "versions" and len(key_path) > 1)
                or key_path[:3] == ("encoder", "built", "interface")
            )
            assert bad is not MISSING or free, f"{key_path} is not missed"
            assert not isinstance(bad, list) or "encoder" in key_path, f"a list in {key_path} is not noticed"


# Writing


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), safetensors.SafetensorError("I/O error")])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_half_written(snapshot, generator, monkeypatch, error):
    before = snapshot.read_bytes()

    def fail(tensors, path, metadata):
        Path(path).write_bytes(before[:100])
        raise error

    monkeypatch.setattr(checkpoint, "save_file", fail)
    for path in (snapshot, snapshot.with_name("new.safetensors")):
        with pytest.raises(GanT2IError, match=f"cannot write {path}: ") as caught:
            save_snapshot(path, generator, replace(INFO, nimg=7))
        assert "\n" not in str(caught.value)
    assert snapshot.read_bytes() == before
    assert list(snapshot.parent.iterdir()) == [snapshot]


def test_an_interrupted_write_leaves_nothing_either(tmp_path, generator, monkeypatch):
    def interrupt(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_snapshot(tmp_path / "snapshot", generator, INFO)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path, generator):
    (tmp_path / "file").write_text("")
    with pytest.raises(GanT2IError, match="cannot write "):
        save_snapshot(tmp_path / "file" / "snapshot", generator, INFO)


def test_tensors_and_metadata_come_back_as_they_were(tmp_path):
    tensors = {"a/b": torch.arange(6).reshape(2, 3).T, "scalar": torch.tensor(2.5), "half": torch.ones(3, dtype=torch.bfloat16)}
    write_tensors(tmp_path / "x", tensors, {"type": "training state", "text": "红"})
    loaded, values = read_tensors(tmp_path / "x")
    assert values == {"type": "training state", "text": "红"}
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensor) and loaded[name].dtype == tensor.dtype for name, tensor in tensors.items())


def test_info_is_read_without_the_weights(snapshot, monkeypatch):
    monkeypatch.setattr(checkpoint, "read_tensors", lambda path: pytest.fail("it read the weights"))
    assert read_info(snapshot) == INFO
