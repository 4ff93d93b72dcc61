"""The real client of OpenAI against a real server."""

import base64
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image

from gan_t2i import Text2Image
from gan_t2i.sampling import edit, inversion
from gan_t2i.serving.app import create_app
from gan_t2i.serving.server import listen, make_server
from gan_t2i.serving.settings import Limits


@pytest.fixture(scope="module")
def client(model: Text2Image) -> Iterator[openai.OpenAI]:
    limits = Limits(pictures=4)
    server = make_server(create_app(model, "small", keys=["key"], limits=limits), limits)
    with listen("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        with openai.OpenAI(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}/v1", api_key="key", max_retries=0) as client:
            yield client
        server.should_exit = True
        thread.join(30)


def picture(text: str) -> Image.Image:
    return Image.fromarray(np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))))


def test_generate(client: openai.OpenAI, model: Text2Image) -> None:
    response = client.images.generate(
        model="small",
        prompt="a red circle",
        n=2,
        size="1024x1024",
        quality="high",
        output_format="jpeg",
        output_compression=80,
        background="auto",
        moderation="low",
        user="me",
    )
    assert (response.size, response.quality, response.output_format, response.background) == ("1024x1024", "high", "jpeg", "opaque")
    assert response.usage
    assert response.usage.total_tokens == 5
    assert [picture(image.b64_json or "").size for image in response.data or []] == [(1024, 1024)] * 2
    response = client.images.generate(model="small", prompt="a red circle", extra_body={"seed": 6, "truncation": 0.5})
    (image,) = response.data or []
    assert [picture(image.b64_json or "")] == model.generate("a red circle", seeds=6, truncation_psi=0.5)
    assert (image.model_extra or {})["seed"] == 6


def test_url(client: openai.OpenAI) -> None:
    (image,) = client.images.generate(model="small", prompt="red", response_format="url").data or []
    response = client._client.get(image.url or "")
    assert (response.status_code, response.headers["content-type"]) == (200, "image/png")


def test_stream(client: openai.OpenAI, model: Text2Image) -> None:
    events = list(client.images.generate(model="small", prompt="red", stream=True, partial_images=3, extra_body={"seed": 1}))
    kinds = ["partial_image", "partial_image", "partial_image", "completed"]
    assert [event.type for event in events] == [f"image_generation.{kind}" for kind in kinds]
    assert [picture(event.b64_json).width for event in events] == [2, 4, 8, 16]
    assert isinstance(events[-1], openai.types.ImageGenCompletedEvent)
    assert events[-1].usage.input_tokens == 3
    assert [picture(events[-1].b64_json)] == model.generate("red", seeds=1)


def test_edit(client: openai.OpenAI, model: Text2Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edit, "STEPS", 3)
    path = tmp_path / "red.png"
    Image.new("RGB", (32, 32), "red").save(path)
    own = {"source": "a red circle", "strength": 0.5, "seed": 7}
    expected = [
        edit.edit(model, inversion.read_picture(path, model), edit.Change("a blue circle", "a red circle", seed, 0.5)) for seed in (7, 8)
    ]
    with path.open("rb") as file:
        response = client.images.edit(model="small", image=file, prompt="a blue circle", n=2, input_fidelity="high", extra_body=own)
    assert [picture(image.b64_json or "") for image in response.data or []] == expected
    assert [(image.model_extra or {})["seed"] for image in response.data or []] == [7, 8]
    assert response.usage
    (image,) = client.images.edit(image=[path], prompt="a blue circle", response_format="url", extra_body=own).data or []
    assert picture(base64.b64encode(client._client.get(image.url or "").content).decode()) == expected[0]
    events = list(client.images.edit(image=path, prompt="a blue circle", stream=True, partial_images=1, n=2, extra_body=own))
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"] * 2
    assert isinstance(events[-1], openai.types.ImageEditCompletedEvent)
    assert [picture(event.b64_json) for event in events[1::2]] == expected


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["small"]
    assert client.models.retrieve("small").owned_by == "gan_t2i"


@pytest.mark.parametrize(
    ("values", "kind", "param"),
    [
        ({"size": "7x"}, openai.BadRequestError, "size"),
        ({"model": "gpt-image-2"}, openai.NotFoundError, "model"),
        ({"n": 5}, openai.RateLimitError, None),
    ],
    ids=str,
)
def test_errors(client: openai.OpenAI, values: dict[str, Any], kind: type[openai.APIStatusError], param: str | None) -> None:
    with pytest.raises(kind) as caught:
        client.images.generate(**{"model": "small", "prompt": "red", **values})
    assert caught.value.param == param
    assert (caught.value.request_id or "").startswith("req_")


def test_errors_of_the_key_and_of_the_route(client: openai.OpenAI, model: Text2Image, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="other").models.list()
    with pytest.raises(openai.NotFoundError, match="Not Found: POST /v1/images/variations"):
        client.post("/images/variations", cast_to=object)
    monkeypatch.setattr(model.generator, "forward", lambda *inputs: 1 / 0)
    with pytest.raises(openai.InternalServerError, match="the server failed"):
        client.images.generate(model="small", prompt="red")
    with pytest.raises(openai.APIError, match="the server failed"):
        list(client.images.generate(model="small", prompt="red", stream=True))
