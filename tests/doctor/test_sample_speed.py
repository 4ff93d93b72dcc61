"""The images that are generated to measure sampling."""

from collections import Counter
from typing import Any

import pytest

from gan_t2i.doctor.sample_speed import BATCH, CALLS, measure_sampling
from gan_t2i.runs import RunFolder
from gan_t2i.sampling.pipeline import Text2Image


def test_sampling_is_measured(trained: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = Text2Image.load(trained.path, device="cpu")
    drawn: Counter[int] = Counter()
    told: list[list[str]] = []
    pipeline.generator.register_forward_hook(lambda module, inputs, output: drawn.update([len(output)]))
    encode = pipeline.encoder.encode

    def note(captions: Any) -> Any:
        told.append(list(captions))
        return encode(captions)

    monkeypatch.setattr(pipeline.encoder, "encode", note)
    speed = measure_sampling(pipeline, ["a red circle", "a blue square"], repeats=2)
    # one at a time: the first, the counted, and each repeat's calls through the pipeline, alone, and of a known prompt
    # 16 at a time: the first and the repeats
    assert drawn == {1: 1 + 1 + 2 * 3 * CALLS, BATCH: 1 + 2}
    assert {len(captions) for captions in told} == {1, BATCH}
    assert told[0] == ["a red circle"]
    assert told.count(["a blue square"]) == 2 * CALLS  # half of the prompts, through the pipeline and alone
    assert min(speed.first, speed.warm, speed.encoder, speed.generator, speed.known, speed.batch_first, speed.batch_warm) > 0
    assert speed.overhead == pytest.approx(speed.warm / (speed.encoder + speed.generator))
    assert 1e-5 < speed.gflop_per_image < 1
