"""The set of many simple pictures, packed, and what real picture a caption has."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from gan_t2i.data.packing import PackedDataset, load_dataset


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], PackedDataset]:
    """Packs a folder at 16 px, in the cache of the tests."""

    def pack(folder: Path) -> PackedDataset:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("GAN_T2I_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
            return load_dataset(folder, 16, progress=False)

    return pack


@pytest.fixture(scope="session")
def many(many_pictures: Path, packed: Callable[[Path], PackedDataset]) -> PackedDataset:
    """The same, packed at 16 px."""
    return packed(many_pictures)


@pytest.fixture(scope="session")
def real_of(many: PackedDataset) -> Callable[[str], Image.Image]:
    """The real picture of a caption; of an unknown one the first training picture."""
    places = {many.captions[ids[0]]: item for item, ids in enumerate(many.caption_ids)}
    return lambda caption: Image.fromarray(many.gather([places.get(caption, int(many.train[0]))])[0].permute(1, 2, 0).numpy())
