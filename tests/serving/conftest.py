"""The small trained model behind the API, in the test's own process."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from gan_t2i import Text2Image
from gan_t2i.runs import RunFolder
from gan_t2i.serving.app import create_app


@pytest.fixture(scope="session")
def model(trained: RunFolder) -> Text2Image:
    return Text2Image.load(trained.path, device="cpu")


@pytest.fixture
def connect(model: Text2Image) -> Iterator[Callable[..., TestClient]]:
    """Makes a client of an application with other keys, limits or model."""
    clients: list[TestClient] = []

    def make(model: Text2Image = model, **options: Any) -> TestClient:
        clients.append(TestClient(create_app(model, "small", created=5, **options)))
        return clients[-1].__enter__()

    yield make
    for client in clients:
        client.__exit__()


@pytest.fixture
def client(connect: Callable[..., TestClient]) -> TestClient:
    return connect()
