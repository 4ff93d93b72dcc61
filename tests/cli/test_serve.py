"""``gan-t2i serve``: what it refuses."""

import importlib.util
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gan_t2i.cli.main import command
from gan_t2i.core.errors import UsageError
from gan_t2i.serving.server import is_loopback, listen, read_keys


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
    (here / "notes").write_text("abc\ndef # mine\n")
    with pytest.raises(UsageError, match="notes has several words: write one API key on each line"):
        read_keys(here / "notes")
    (here / "windows").write_bytes(b"\xef\xbb\xbfabc\r\n\r\n def \r\n")
    assert read_keys(here / "windows") == ["abc", "def"]
    assert "cannot read the API keys in latin1" in refusal("--api-key-file", "latin1")
    assert "missing" in refusal("--api-key-file", "missing")


def test_an_address_that_is_taken(here: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert refusal("--port", port) == f"Error: cannot listen at 127.0.0.1, port {port}: Address already in use"
    assert "no such run or snapshot: nowhere" in refusal("nowhere")


def test_answers_are_sent_at_once() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name))
    assert refusal(code=1).endswith(
        'Error: serving needs fastapi, uvicorn, prometheus-client and python-multipart: pip install "gan-t2i[serve]"'
    )
