"""The server as a process of its own: its end, its load, and what a kill leaves."""

import base64
import io
import os
import random
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image
from processes import free_port, start_command

from gan_t2i import Text2Image
from gan_t2i.runs import RunFolder

pytestmark = pytest.mark.slow

Start = Callable[..., BaseProcess]


@pytest.fixture
def start(trained: RunFolder, tmp_path: Path) -> Iterator[Start]:
    """Starts a server, and waits until it listens."""
    processes: list[BaseProcess] = []
    keys, log = tmp_path / "keys", tmp_path / "log"
    keys.write_text("first\nsecond\n")

    def run(port: int) -> BaseProcess:
        log.unlink(missing_ok=True)
        options = ("--port", port, "--api-key-file", keys, "--device", "cpu")
        process = start_command("serve", trained.path, *options, log=log)
        processes.append(process)
        while not (log.exists() and re.search(f"images API at http://127.0.0.1:{port}/v1; Ctrl-C stops", log.read_text())):
            assert process.is_alive()
            time.sleep(0.01)
        return process

    yield run
    for process in processes:
        process.kill()
        process.join()


@pytest.fixture
def client() -> Iterator[httpx2.Client]:
    """A client of a port that nobody listens at yet."""
    limits = httpx2.Limits(max_connections=50)
    headers = {"Authorization": "Bearer second"}
    with httpx2.Client(base_url=f"http://127.0.0.1:{free_port()}", limits=limits, headers=headers, timeout=60) as client:
        yield client


def draw(client: httpx2.Client, **values: Any) -> list[Image.Image]:
    """Ask for pictures; raises httpx2.HTTPError where it gets none."""
    response = client.post("/v1/images/generations", json=values).raise_for_status()
    files = [base64.b64decode(entry["b64_json"]) for entry in response.json()["data"]]
    return [Image.fromarray(np.asarray(Image.open(io.BytesIO(file)))) for file in files]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_answers_what_is_under_way(
    number: signal.Signals, start: Start, client: httpx2.Client, trained: RunFolder, tmp_path: Path
) -> None:
    process = start(client.base_url.port)
    assert client.get("/v1/models").json()["data"][0]["id"] == trained.path.name
    with ThreadPoolExecutor(4) as others:
        values = {"prompt": "an unspeakable prompt", "n": 10, "size": "1024x1024"}
        requests = [others.submit(draw, client, **values) for _ in range(4)]
        while "gan_t2i_pictures_pending 40.0" not in client.get("/metrics").text:
            assert not any(request.done() for request in requests)
        os.kill(process.pid or 0, number)
        assert [len(request.result()) for request in requests] == [10] * 4
    process.join(60)
    output = (tmp_path / "log").read_text()
    assert process.exitcode == 0, output
    assert output.endswith("stopped\n")
    assert output.count("POST /v1/images/generations 200\n") == 4
    assert "unspeakable" not in output
    with pytest.raises(httpx2.ConnectError):
        client.get("/healthz")


def test_a_thousand_requests_of_fifty_connections(start: Start, client: httpx2.Client, trained: RunFolder) -> None:
    start(client.base_url.port)
    prompts = [f"a {colour} {shape}" for colour, shape in product(("red", "green", "blue", "pink"), ("circle", "square", "star", "dog", "x"))]
    wanted = Text2Image.load(trained.path, device="cpu").generate(prompts, seeds=range(50))
    order = list(enumerate(product(prompts, range(50))))
    random.Random(0).shuffle(order)
    with ThreadPoolExecutor(50) as others:
        requests = {number: others.submit(draw, client, prompt=prompt, seed=seed) for number, (prompt, seed) in order}
    assert [requests[number].result() for number in range(1000)] == [[picture] for picture in wanted]


def test_after_a_kill_clients_have_a_picture_or_an_error(start: Start, client: httpx2.Client, trained: RunFolder) -> None:
    (wanted,) = Text2Image.load(trained.path, device="cpu").generate("red", seeds=0)
    larger = wanted.resize((512, 512), Image.Resampling.LANCZOS)
    pictures = errors = 0
    for moment in range(10):
        process = start(client.base_url.port)
        with ThreadPoolExecutor(8) as others:
            requests = [others.submit(draw, client, prompt="red", seed=0, size="512x512") for _ in range(40)]
            while sum(request.done() for request in requests) <= 2 * moment:
                time.sleep(0.001)
            process.kill()
        for request in requests:
            error = request.exception()
            assert request.result() == [larger] if error is None else isinstance(error, httpx2.TransportError)
            pictures, errors = pictures + (error is None), errors + (error is not None)
    assert pictures >= sum(2 * moment + 1 for moment in range(10))
    assert errors
