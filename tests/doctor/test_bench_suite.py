"""The files and the machine's figures of a benchmark."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from gan_t2i.core.errors import UsageError
from gan_t2i.core.runtime import peak_memory_gib
from gan_t2i.doctor import bench as suite

CPU = torch.device("cpu")


def test_a_trace_is_compressed_where_its_name_says_so(tmp_path: Path) -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        torch.ones(2).sum()
    suite.write_trace(profiler, tmp_path / "a" / "trace.json.gz")
    with gzip.open(tmp_path / "a" / "trace.json.gz", "rt", encoding="utf-8") as file:
        assert "aten::sum" in {event.get("name") for event in json.load(file)["traceEvents"]}
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"cannot write .*trace.json: "):
        suite.write_trace(profiler, tmp_path / "file" / "trace.json")


@pytest.mark.parametrize("fast", [True, False])
def test_bfloat16_is_measured_where_the_hardware_has_it(monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    monkeypatch.setattr(suite, "has_fast_bf16", lambda device: fast)
    monkeypatch.setattr(suite, "convolution_rate", lambda device, precision: {"bf16": 4.0, "float32": 3.0}[precision])
    monkeypatch.setattr(suite, "matmul_rate", lambda device, dtype: {torch.bfloat16: 2.0, torch.float32: 1.0}[dtype])
    rates = {"convolution float32": 3.0, "matmul float32": 1.0}
    if fast:
        rates |= {"convolution bf16": 4.0, "matmul bf16": 2.0}
    assert suite.machine_rates(CPU) == rates


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux forgets a peak")
def test_an_earlier_peak_is_forgotten() -> None:
    before = peak_memory_gib(CPU)
    held = torch.ones(300 * 2**20, dtype=torch.uint8)
    assert peak_memory_gib(CPU) > before
    peak = peak_memory_gib(CPU)
    del held
    suite.reset_peak_memory(CPU)
    assert peak_memory_gib(CPU) < peak - 0.2
