"""``gan-t2i serve``: what it refuses, and how it begins and ends."""

import importlib.util
import json
import os
import re
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from processes import start_command

from gan_t2i.cli.main import command
from gan_t2i.runs import RunFolder
from gan_t2i.serving.server import is_loopback


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def serve(*arguments: object) -> Result:
    return CliRunner().invoke(command, ["serve", *map(str, arguments)])


def refusal(*arguments: object, code: int = 2) -> str:
    result = serve(*arguments)
    assert result.exit_code == code, result.output
    assert "model:" not in result.stderr  # before the model is loaded
    return result.stderr.splitlines()[-1]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org"])
def test_others_need_a_key(host: str) -> None:
    sentence = f"Error: --host {host} can be reached from other machines: give --api-key-file FILE, with a key that requests must carry"
    assert refusal("--host", host) == sentence


def test_loopback() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))


def test_keys(here: Path) -> None:
    (here / "blank").write_text(" \n\n")
    (here / "latin1").write_bytes(b"\xe9")
    assert "blank holds no API key: write one on a line" in refusal("--api-key-file", "blank")
    assert "cannot read the API keys in latin1" in refusal("--api-key-file", "latin1")
    assert "missing" in refusal("--api-key-file", "missing")


def test_an_address_that_is_taken(here: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert refusal("--port", port).startswith("Error: cannot listen at 127.0.0.1: Address already in use")
    assert "no such run or snapshot: nowhere" in refusal("nowhere")


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name))
    assert refusal(code=1).endswith('Error: serving needs fastapi, uvicorn and prometheus-client: pip install "gan-t2i[serve]"')


@pytest.fixture
def started(trained: RunFolder, here: Path) -> Iterator[tuple[BaseProcess, str]]:
    """A server process and its URL."""
    (here / "keys").write_text("first\nsecond\n")
    process = start_command("serve", trained.path, "--port", 0, "--api-key-file", "keys", "--device", "cpu", log=here / "log")
    while not (found := re.search(r"images API at (\S+)/v1", (here / "log").read_text() if (here / "log").exists() else "")):
        assert process.is_alive()
        time.sleep(0.01)
    yield process, found[1]
    process.kill()
    process.join()


def fetch(url: str, body: dict[str, Any] | None = None) -> Any:
    headers = {"Authorization": "Bearer second", "Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode() if body else None, headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        return response.read().decode()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_answers_what_is_under_way(number: signal.Signals, started: tuple[BaseProcess, str], trained: RunFolder, here: Path) -> None:
    process, url = started
    assert json.loads(fetch(f"{url}/v1/models"))["data"][0]["id"] == trained.path.name
    with ThreadPoolExecutor(4) as clients:
        body = {"prompt": "an unspeakable prompt", "n": 10, "size": "1024x1024"}
        requests = [clients.submit(fetch, f"{url}/v1/images/generations", body) for _ in range(4)]
        while "gan_t2i_pictures_taken 40.0" not in fetch(f"{url}/metrics"):
            assert not any(request.done() for request in requests)
        os.kill(process.pid or 0, number)
        assert [len(json.loads(request.result())["data"]) for request in requests] == [10] * 4
    process.join(60)
    output = (here / "log").read_text()
    assert process.exitcode == 0, output
    assert output.endswith("stopped\n")
    assert output.count("POST /v1/images/generations 200\n") == 4
    assert "unspeakable" not in output
    with pytest.raises(urllib.error.URLError, match="refused"):
        fetch(f"{url}/healthz")
