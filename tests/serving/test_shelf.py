"""Pictures stay for a time, within their memory."""

from gan_t2i.serving.settings import Limits
from gan_t2i.serving.shelf import Shelf


def test_a_file_expires() -> None:
    now = 0.0
    shelf = Shelf(Limits(shelf_seconds=10), lambda: now)
    name = shelf.put(b"one", "png")
    assert name.endswith(".png")
    assert len(name) > 30
    now = 9.9
    assert shelf.get(name) == b"one"
    assert shelf.get("other.png") is None
    now = 10
    assert shelf.get(name) is None


def test_the_oldest_make_way() -> None:
    shelf = Shelf(Limits(shelf_bytes=10))
    first, second, third = (shelf.put(bytes(4), "png") for _ in range(3))
    assert shelf.get(first) is None
    assert shelf.get(second) == shelf.get(third) == bytes(4)
    assert shelf.get(shelf.put(bytes(11), "png")) is None  # larger than all of it
    assert shelf.get(third) is None
