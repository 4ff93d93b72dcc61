"""The set of many simple pictures, packed, and what real picture a caption has."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from gan_t2i.data.packing import PackedDataset, load_dataset


@pytest.fixture(scope="session")
def many(many_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    """The same, packed at 16 px."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GAN_T2I_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        return load_dataset(many_pictures, 16, progress=False)


@pytest.fixture(scope="session")
def real_of(many: PackedDataset) -> Callable[[str], Image.Image]:
    """The real picture of a caption; of an unknown one the first training picture."""
    places = {many.captions[ids[0]]: item for item, ids in enumerate(many.caption_ids)}
    return lambda caption: Image.fromarray(many.gather([places.get(caption, int(many.train[0]))])[0].permute(1, 2, 0).numpy())
