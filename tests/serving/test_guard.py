"""Keys, limits, clients that leave, errors, and what is counted and logged."""

import asyncio
import json
import logging
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from connections import post
from fastapi.testclient import TestClient

from gan_t2i import Text2Image
from gan_t2i.serving.app import create_app
from gan_t2i.serving.settings import Limits

URL = "/v1/images/generations"
SECRET = "an unspeakable prompt"


class Brush:
    """Holds the drawing thread until it is released, and counts the pictures and the tokens of their prompts."""

    def __init__(self, model: Text2Image, monkeypatch: pytest.MonkeyPatch) -> None:
        self.drawing, self.released, self.count = threading.Semaphore(0), threading.Event(), 0
        self.tokens: list[int] = []
        forward = model.generator.forward

        def held(*inputs: Any) -> Any:
            self.count += 1
            self.tokens.append(int(inputs[1].mask.sum()))
            self.drawing.release()
            assert self.released.wait(30)
            return forward(*inputs)

        monkeypatch.setattr(model.generator, "forward", held)


@pytest.fixture
def brush(model: Text2Image, monkeypatch: pytest.MonkeyPatch) -> Iterator[Brush]:
    brush = Brush(model, monkeypatch)
    yield brush
    brush.released.set()


def counted(client: TestClient, name: str) -> float:
    """The value of a metric."""
    (line,) = [line for line in client.get("/metrics").text.splitlines() if line.startswith(name + " ")]
    return float(line.split()[-1])


def test_a_key_opens(connect: Callable[..., TestClient]) -> None:
    client = connect(keys=["first", "sécond"])
    for header in (None, "first", "Bearer", "Bearer ", "Bearer wrong", "Bearer firstx", "Basic first"):
        response = client.post(URL, json={"prompt": "red"}, headers={"Authorization": header} if header else {})
        assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
        assert response.headers["www-authenticate"] == "Bearer"
    for key in ("Bearer first", "bearer sécond".encode()):
        assert client.post(URL, json={"prompt": "red"}, headers={"Authorization": key}).status_code == 200
    assert [client.get(path).status_code for path in ("/v1/models", "/metrics", "/nothing", "/healthz")] == [401, 401, 401, 200]
    url = client.post(URL, json={"prompt": "red", "response_format": "url"}, headers={"Authorization": "Bearer first"}).json()["data"][0]["url"]
    assert client.get(url).status_code == 200


def test_every_answer_has_an_id_of_its_own(client: TestClient) -> None:
    answers = [client.get(path) for path in ("/healthz", "/healthz", "/nothing")] + [client.post(URL, json={})]
    assert len({answer.headers["x-request-id"] for answer in answers}) == 4
    assert all(answer.headers["x-request-id"].startswith("req_") for answer in answers)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "unknown_url"),
        ("GET", "/docs", 404, "unknown_url"),
        ("GET", "/openapi.json", 404, "unknown_url"),
        ("POST", "/v1/images/variations", 404, "unknown_url"),
        ("GET", URL, 405, "method_not_allowed"),
        ("DELETE", "/v1/models/small", 405, "method_not_allowed"),
    ],
)
def test_a_wrong_address(client: TestClient, method: str, path: str, status: int, code: str) -> None:
    response = client.request(method, path)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert f"{method} {path}" in response.json()["error"]["message"]


def test_a_body_that_is_too_large(connect: Callable[..., TestClient]) -> None:
    client = connect(limits=Limits(body=100))
    assert client.post(URL, json={"prompt": "red"}).status_code == 200
    response = client.post(URL, json={"prompt": "x" * 100})
    assert (response.status_code, response.json()["error"]["message"]) == (413, "the body has more than 100 bytes")


def test_bodies_that_are_under_way_together_have_a_limit(model: Text2Image, said: list[str]) -> None:
    limit = 3 * 2**20
    app = create_app(model, "small", limits=Limits(upload=2**20, bodies=limit))
    client = TestClient(app)
    part = bytes(900_000)

    async def upload_at_once() -> list[list[Any]]:
        leave = asyncio.Event()
        tracemalloc.start()
        uploads = [asyncio.create_task(post(app, "/v1/images/edits", part, leave, is_whole=False)) for _ in range(10)]
        for _ in range(100):
            await asyncio.sleep(0)
        assert 3 * len(part) < tracemalloc.get_traced_memory()[0] < 1.25 * limit
        tracemalloc.stop()
        assert counted(client, "gan_t2i_body_bytes") == 3 * len(part)
        assert client.post(URL, json={"prompt": "red"}).status_code == 200
        refused = [upload.result() for upload in uploads if upload.done()]
        leave.set()
        await asyncio.gather(*uploads)
        return refused

    refused = asyncio.run(upload_at_once())
    assert len(refused) == 7
    for start, content in refused:
        error = json.loads(content["body"])["error"]
        assert (start["status"], error["type"], error["code"]) == (429, "rate_limit_error", "bodies_full")
        assert int(dict(start["headers"])[b"retry-after"]) >= 1
    assert said.count("POST /v1/images/edits 429") == 7
    assert counted(client, "gan_t2i_body_bytes") == 0
    assert client.post("/v1/images/edits", content=part).json()["error"]["code"] == "invalid_form"  # there is room again


def test_a_full_queue(connect: Callable[..., TestClient], brush: Brush, model: Text2Image) -> None:
    client = connect(limits=Limits(pictures=3))
    with ThreadPoolExecutor(1) as other:
        first = other.submit(client.post, URL, json={"prompt": "red", "n": 2, "seed": 0})
        assert brush.drawing.acquire(timeout=30)
        assert counted(client, "gan_t2i_pictures_pending") == 2
        response = client.post(URL, json={"prompt": "red", "n": 2})
        brush.released.set()
        error = response.json()["error"]
        assert (response.status_code, error["type"], error["code"]) == (429, "rate_limit_error", "queue_full")
        assert int(response.headers["retry-after"]) >= 1
        assert first.result().status_code == 200
    assert client.post(URL, json={"prompt": "red", "n": 3}).status_code == 200
    assert client.post(URL, json={"prompt": "red", "n": 4}).status_code == 429  # never
    assert counted(client, "gan_t2i_pictures_pending") == 0


@pytest.mark.parametrize(
    ("path", "values"), [(URL, {"n": 5}), (URL, {"n": 5, "stream": True}), ("/effects", {})], ids=["pictures", "stream", "effects"]
)
def test_what_a_client_that_left_asked_for_is_not_drawn(
    model: Text2Image, brush: Brush, said: list[str], path: str, values: dict[str, Any]
) -> None:
    app = create_app(model, "small")

    async def leave_at_the_first_picture() -> list[Any]:
        leave = asyncio.Event()
        request = asyncio.create_task(post(app, path, json.dumps({"prompt": SECRET, **values}).encode(), leave))
        await asyncio.to_thread(brush.drawing.acquire)
        leave.set()
        sent = await request
        brush.released.set()
        other = await post(app, URL, b'{"prompt": "red"}')
        assert other[0]["status"] == 200
        return sent

    sent = asyncio.run(leave_at_the_first_picture())
    assert [message["type"] for message in sent] == ["http.response.start"] * ("stream" in values)
    assert brush.count == 2  # the first of several, and that of the other request
    assert said == [f"POST {path} 499", f"POST {URL} 200"]


def test_others_have_their_turns_between_the_words_of_an_explanation(connect: Callable[..., TestClient], brush: Brush) -> None:
    client = connect()
    with ThreadPoolExecutor(2) as others:
        others.submit(client.post, "/effects", json={"prompt": "a red circle"})
        assert brush.drawing.acquire(timeout=30)
        others.submit(client.post, URL, json={"prompt": "red"})
        while counted(client, "gan_t2i_pictures_pending") < 2:
            pass
        brush.released.set()
    assert brush.count == 5
    assert brush.tokens[1] < min(brush.tokens[:1] + brush.tokens[2:])  # the shortest prompt is the other one's


def test_a_request_has_its_time(connect: Callable[..., TestClient], brush: Brush) -> None:
    client = connect(limits=Limits(seconds=0.05))
    response = client.post(URL, json={"prompt": "red"})
    assert (response.status_code, response.json()["error"]["code"]) == (503, "timeout")
    brush.released.set()
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.head("/healthz").status_code == 200
    assert counted(client, "gan_t2i_pictures_pending") == 0


def test_what_a_stopping_server_gives_up_is_told(model: Text2Image, brush: Brush, said: list[str]) -> None:
    app = create_app(model, "small")

    async def cancel() -> list[Any]:
        request = asyncio.create_task(post(app, URL, json.dumps({"prompt": "red"}).encode()))
        assert await asyncio.to_thread(brush.drawing.acquire, timeout=30)
        request.cancel()
        return await request

    start, content = asyncio.run(cancel())
    error = json.loads(content["body"])["error"]
    assert (start["status"], error["type"], error["code"]) == (503, "server_error", "stopped")
    assert f"POST {URL} 503" in said


def test_no_prompt_is_logged(
    connect: Callable[..., TestClient], model: Text2Image, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gan_t2i")
    client = connect()
    url = client.post(URL, json={"prompt": SECRET * 9, "response_format": "url"}).json()["data"][0]["url"]
    client.get(url + "?q=1")
    client.post(URL, json={"prompt": SECRET, "n": 0})

    def fail(*inputs: Any) -> None:
        raise RuntimeError(SECRET)

    monkeypatch.setattr(model.generator, "forward", fail)
    response = client.post(URL, json={"prompt": SECRET})
    assert (response.status_code, response.json()["error"]) == (
        500,
        {"message": "the server failed", "type": "server_error", "param": None, "code": "internal_error"},
    )
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("gan_t2i")]
    fault = lines.pop(3)
    assert lines == [f"POST {URL} 200", "GET /pictures/{name} 200", f"POST {URL} 400", f"POST {URL} 500"]
    assert fault.startswith("RuntimeError in\n")
    assert "in fail\n" in fault
    assert "unspeakable" not in caplog.text


def test_what_a_client_sends_is_one_short_line_and_few_metrics(client: TestClient, said: list[str]) -> None:
    client.get("/a%0aPOST /v1/images/edits 200%1b[31m")
    client.get("/" + "b" * 10_000)
    client.request("BREW", "/")
    assert said == [r"GET /a\nPOST /v1/images/edits 200\x1b[31m 404", f"GET /{'b' * 94}… 404", "BREW / 405"]
    assert counted(client, 'gan_t2i_requests_total{method="other",path="/",status="405"}') == 1


def test_metrics(client: TestClient) -> None:
    client.post(URL, json={"prompt": "red", "n": 2})
    client.get("/nothing/1")
    client.get("/nothing/2")
    assert counted(client, "gan_t2i_drawing_seconds_count") == 2
    assert counted(client, f'gan_t2i_requests_total{{method="POST",path="{URL}",status="200"}}') == 1
    assert counted(client, 'gan_t2i_requests_total{method="GET",path="other",status="404"}') == 2
