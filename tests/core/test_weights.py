"""Files with weights that cannot be used get one sentence."""

from pathlib import Path

import pytest
import torch

from gan_t2i.core.errors import GanT2IError
from gan_t2i.core.weights import load_tensors, local_weights


@pytest.mark.parametrize("name", ["torn.pt", "torn.safetensors"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"torn")
    with pytest.raises(GanT2IError, match=f"network from the local file .*{name} cannot be read: "):
        load_tensors(local_weights(tmp_path / name, "network"))


def test_anything_but_tensors_by_name_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(GanT2IError, match="something else than a mapping of names to tensors"):
        load_tensors(local_weights(tmp_path / "list.pt", "network"))
