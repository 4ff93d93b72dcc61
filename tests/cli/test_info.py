"""``gan-t2i info``: what stands in a snapshot, and what is registered."""

import json

from click.testing import CliRunner

from gan_t2i.checkpoint import load_snapshot
from gan_t2i.cli.main import command
from gan_t2i.models.text_head import TextHeadConfig
from gan_t2i.runs import RunFolder


def test_a_run_shows_its_newest_snapshot(trained: RunFolder) -> None:
    result = CliRunner().invoke(command, ["info", str(trained.path)])
    assert result.exit_code == 0, result.output
    lines = dict(line.split("  ", 1) for line in result.output.splitlines())
    values = {key: value.strip() for key, value in lines.items()}
    generator, info = load_snapshot(trained.snapshot(40))
    assert values["snapshot"] == str(trained.snapshot(40))
    assert values["images shown"] == "40"
    assert (values["generator"], values["autoencoder"]) == ("style", "pixels")
    assert values["resolution"] == "16 px, RGB"
    assert values["parameters"] == f"{sum(p.numel() for p in generator.parameters()):,}"
    assert info.data_fingerprint[:12] in values["data"]
    assert info.encoder.weights_hash[:12] in values["text encoder"]
    assert json.loads(values["settings"])["channel_max"] == 16


def test_a_snapshot_as_json(trained: RunFolder) -> None:
    result = CliRunner().invoke(command, ["info", str(trained.snapshot(20)), "--json"])
    assert result.exit_code == 0, result.output
    values = json.loads(result.output)
    assert values["images shown"] == "20"
    assert values["settings"]["text_head"] == {**TextHeadConfig().model_dump(), "width": 32, "layers": 1, "heads": 2}


def test_without_an_argument_the_registered_models() -> None:
    shown, as_json = (CliRunner().invoke(command, ["info", *options]) for options in ([], ["--json"]))
    assert shown.exit_code == as_json.exit_code == 0
    values = json.loads(as_json.output)
    assert "conv" in values["autoencoder"]
    assert "style" in values["generator"]
    assert "resnet" in values["discriminator"]
    assert "sentence-transformer" in values["text_encoder"]
    assert all(kind in shown.output and names in shown.output for kind, names in values.items())


def test_a_packaged_model_shows_its_card() -> None:
    shown, as_json = (CliRunner().invoke(command, ["info", "pretrained:shapes64", *options]) for options in ([], ["--json"]))
    card = json.loads(as_json.output)["card"]
    assert shown.output.endswith("\n\n" + card)
    assert "67 words" in shown.output
