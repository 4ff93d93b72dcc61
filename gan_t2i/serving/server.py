"""The server process: its socket, its API keys, and its end."""

import ipaddress
import logging
import socket
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from gan_t2i.core.errors import UsageError
from gan_t2i.core.stopping import StopRequest
from gan_t2i.serving.settings import Limits

log = logging.getLogger(__name__)


def read_keys(path: Path) -> list[str]:
    """Return the API keys in a file, one a line; raises `UsageError` where it holds none, or anything else."""
    try:
        keys = list(filter(None, map(str.strip, path.read_text(encoding="utf-8-sig").splitlines())))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the API keys in {path}: {error}") from error
    if not keys:
        raise UsageError(f"{path} holds no API key: write one on a line, such as that of: openssl rand -hex 32")
    if any(len(key.split()) > 1 for key in keys):  # a note beside a key, whose words would be keys
        raise UsageError(f"a line of {path} has several words: write one API key on each line, and nothing else")
    return keys


def is_loopback(host: str) -> bool:
    """Return True if only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; a client waits there until the model is loaded. Raises `UsageError` where it cannot."""
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, UnicodeError) as error:
        reason = str(getattr(error, "strerror", None) or error).partition(" (")[0]  # Python adds the address
        raise UsageError(f"cannot listen at {host}, port {port}: {reason}") from error
    # connections inherit it; without it, the second packet of an answer waits 40 ms for the client's word that it has the first
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def serve(app: FastAPI, listener: socket.socket, limits: Limits) -> None:
    """Answer requests until SIGINT or SIGTERM, then those under way, and return."""
    host, port = listener.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    log.info(f"page at {address}, images API at {address}/v1; Ctrl-C stops")
    with StopRequest():  # uvicorn raises the signal again once it is done
        make_server(app, limits).run(sockets=[listener])
    log.info("stopped")


def make_server(app: FastAPI, limits: Limits) -> uvicorn.Server:
    """Return a server that logs warnings alone: the guard logs requests, without queries and without the names of pictures."""
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it repeats parts of forms that are refused
    return uvicorn.Server(
        uvicorn.Config(app, log_config=None, access_log=False, server_header=False, ws="none", timeout_graceful_shutdown=limits.drain_seconds)
    )
