"""What a request draws, in which form it comes, and what is refused."""

import base64
import dataclasses
import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from gan_t2i import Text2Image
from gan_t2i.serving.images_api import on_canvas

URL = "/v1/images/generations"


def opened(content: str | bytes) -> Image.Image:
    """The picture in a file, or in its base64 text."""
    return Image.open(io.BytesIO(base64.b64decode(content) if isinstance(content, str) else content))


def plain(content: str) -> Image.Image:
    """The pixels of a picture, without its file's format and marks."""
    return Image.fromarray(np.asarray(opened(content)))


def draw(client: TestClient, **values: Any) -> dict[str, Any]:
    response = client.post(URL, json={"prompt": "a red circle", **values})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def pictures(answer: dict[str, Any]) -> list[Image.Image]:
    return [plain(entry["b64_json"]) for entry in answer["data"]]


def events(client: TestClient, **values: Any) -> list[tuple[str, dict[str, Any]]]:
    response = client.post(URL, json={"prompt": "a red circle", "stream": True, **values})
    assert response.headers["content-type"].startswith("text/event-stream")
    parts = [part.split("\n") for part in response.text.removesuffix("\n\n").split("\n\n")]
    return [(kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for kind, data in parts]


@pytest.fixture
def clear(model: Text2Image) -> Text2Image:
    """A model of pictures with alpha, untrained."""
    spec = dataclasses.replace(model.info.generator, interface={**model.info.generator.interface, "channels": 4})
    generator = spec.build().eval().requires_grad_(False)
    return Text2Image(generator, model.encoder, dataclasses.replace(model.info, generator=spec))


def test_pictures_are_those_of_sample(client: TestClient, model: Text2Image) -> None:
    answer = draw(client, seed=3, n=3, truncation=0.7)
    assert [entry["seed"] for entry in answer["data"]] == [3, 4, 5]
    assert pictures(answer) == model.generate("a red circle", seeds=[3, 4, 5], truncation_psi=0.7)
    assert pictures(draw(client, seed=3)) == model.generate("a red circle", seeds=3)


def test_a_random_seed_is_told_and_draws_the_same_again(client: TestClient) -> None:
    answer = draw(client, n=4)
    seeds = [entry["seed"] for entry in answer["data"]]
    assert len(set(seeds)) == 4
    assert pictures(draw(client, seed=seeds[2])) == pictures(answer)[2:3]


def test_the_answer(client: TestClient) -> None:
    answer = draw(client, prompt="red " * 20, quality="hd", user="me", model="small", moderation="low", style=None, n=None)
    assert isinstance(answer.pop("created"), int)
    (entry,) = answer.pop("data")
    assert entry.keys() == {"b64_json", "seed"}
    details = {"text_tokens": 16, "image_tokens": 0}
    assert answer == {
        "size": "16x16",
        "quality": "high",
        "output_format": "png",
        "background": "opaque",
        "usage": {"input_tokens": 16, "input_tokens_details": details, "output_tokens": 0, "total_tokens": 16},
        "warnings": ["it has 22 tokens; the model reads 16, the rest is left out"],
        "safety_identifier": "me",
    }
    assert draw(client, user="me", safety_identifier="you")["safety_identifier"] == "you"


def test_each_prompt_is_read_once(client: TestClient, model: Text2Image, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Any] = []
    encode = model.encoder.encode
    monkeypatch.setattr(model.encoder, "encode", lambda prompts: read.append(prompts) or encode(prompts))
    for prompt in ("one", "two", "one", "two"):
        draw(client, prompt=prompt, n=2)
    assert read == [["one"], ["two"]]


def test_a_size_is_a_filter_away(client: TestClient, model: Text2Image) -> None:
    (own,) = model.generate("a red circle", seeds=0)
    for side in (8, 40, 256):
        answer = draw(client, seed=0, size=f"{side}x{side}")
        assert answer["size"] == f"{side}x{side}"
        assert pictures(answer) == [own.resize((side, side), Image.Resampling.LANCZOS)]
    assert pictures(draw(client, seed=0, size="16x16")) == pictures(draw(client, seed=0, size="auto")) == [own]


def test_another_shape_than_a_square_is_filled_up(client: TestClient, model: Text2Image) -> None:
    [own] = model.generate("a red circle", seeds=0)
    answer = draw(client, seed=0, size="20x48")
    assert answer["size"] == "20x48"
    [picture] = pictures(answer)
    assert picture.size == (20, 48)
    assert picture.crop((0, 14, 20, 34)) == own.resize((20, 20), Image.Resampling.LANCZOS)
    assert len(picture.crop((0, 0, 20, 14)).getcolors()) == 1
    square = Image.new("RGBA", (4, 4), "red")
    assert on_canvas(square, 8, 4).getpixel((0, 0)) == (0, 0, 0, 0)
    assert on_canvas(square.convert("RGB"), 8, 4).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(("form", "least"), [("png", 0), ("jpeg", 1), ("webp", 1)])
def test_formats_carry_the_mark(client: TestClient, model: Text2Image, form: str, least: int) -> None:
    answer = draw(client, seed=1, output_format=form, size="64x64")
    content = base64.b64decode(answer["data"][0]["b64_json"])
    assert answer["output_format"] == form
    assert opened(content).format == form.upper()
    assert b"trainedAlgorithmicMedia" in content
    assert b"red" not in content
    (own,) = model.generate("a red circle", seeds=1)
    difference = np.asarray(opened(content), int) - np.asarray(own.resize((64, 64), Image.Resampling.LANCZOS), int)
    assert least <= np.abs(difference).max() <= 40
    if form != "png":
        assert len(base64.b64decode(draw(client, seed=1, output_format=form, size="64x64", output_compression=5)["data"][0]["b64_json"])) < len(
            content
        )


def test_transparency(connect: Callable[..., TestClient], clear: Text2Image) -> None:
    client = connect(clear)
    (own,) = clear.generate("a red circle")
    assert own.mode == "RGBA"
    for values in ({}, {"background": "transparent"}):
        answer = draw(client, seed=0, **values)
        assert (answer["background"], pictures(answer)) == ("transparent", [own])
    white = Image.alpha_composite(Image.new("RGBA", own.size, "white"), own).convert("RGB")
    answer = draw(client, seed=0, background="opaque")
    assert (answer["background"], pictures(answer)) == ("opaque", [white])
    answer = draw(client, seed=0, output_format="jpeg")
    assert (answer["background"], pictures(answer)[0].mode) == ("opaque", "RGB")
    assert pictures(draw(client, output_format="webp"))[0].mode == "RGBA"
    assert client.get("/v1/models/small").json()["transparent"] is True


def test_a_url_shows_the_picture_for_a_time(connect: Callable[..., TestClient], model: Text2Image) -> None:
    answer = draw(client := connect(), seed=2, n=2, response_format="url", output_format="webp")
    urls = [entry["url"] for entry in answer["data"]]
    assert len(set(urls)) == 2
    response = client.get(urls[0])
    assert response.headers["content-type"] == "image/webp"
    assert opened(response.content).size == (16, 16)
    assert client.get(urls[0].replace("/pictures/", "/pictures/x")).json()["error"]["code"] == "picture_expired"


def test_a_stream(client: TestClient, model: Text2Image) -> None:
    first, *rest = events(client, seed=4, n=2, partial_images=2, quality="low", size="32x32")
    kinds = [kind for kind, _ in (first, *rest)]
    assert kinds == ["image_generation.partial_image", "image_generation.partial_image", "image_generation.completed"] * 2
    assert all(values["type"] == kind for kind, values in (first, *rest))
    assert [plain(values["b64_json"]).width for _, values in (first, *rest)] == [8, 16, 32] * 2
    assert [values.get("partial_image_index") for _, values in (first, *rest)] == [0, 1, None] * 2
    common = {"size": "32x32", "quality": "low", "output_format": "png", "background": "opaque"}
    assert all(common.items() <= values.items() for _, values in rest)
    last = rest[-1][1]
    assert (last["seed"], last["usage"]["total_tokens"], last["warnings"]) == (5, 5, [])
    ((_, only),) = events(client, seed=4)
    assert [plain(only["b64_json"])] == model.generate("a red circle", seeds=4)


def test_a_stream_that_fails_says_so(client: TestClient, model: Text2Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.generator, "forward", lambda *inputs: 1 / 0)
    ((kind, values),) = events(client)
    assert (kind, values["error"]["code"]) == ("error", "internal_error")


@pytest.mark.parametrize(
    ("values", "param", "code", "message"),
    [
        ({"prompt": None}, "prompt", "missing_required_parameter", "prompt: Field required"),
        ({"prompt": " "}, "prompt", "invalid_value", "say what to draw"),
        ({"prompt": 3}, "prompt", "invalid_value", "valid string"),
        ({"prompt": "x" * 32_001}, "prompt", "invalid_value", "at most 32000 characters"),
        ({"n": 0}, "n", "invalid_value", "greater than or equal to 1"),
        ({"n": 11}, "n", "invalid_value", "less than or equal to 10"),
        ({"n": "2"}, "n", "invalid_value", "valid integer"),
        ({"n": True}, "n", "invalid_value", "valid integer"),
        ({"size": "big"}, "size", "invalid_value", "it is auto, or pixels such as 256x256"),
        ({"size": 64}, "size", "invalid_value", "it is auto, or pixels such as 256x256"),
        ({"size": "0x0"}, "size", "invalid_value", "it is auto"),
        ({"size": "1537x1024"}, "size", "invalid_value", "at most 1536x1536 pixels"),
        ({"size": "2048x2048"}, "size", "invalid_value", "at most 1536x1536"),
        ({"output_format": "gif"}, "output_format", "invalid_value", "'png', 'jpeg' or 'webp'"),
        ({"output_compression": 50}, "output_compression", "invalid_value", "png files lose nothing"),
        ({"output_compression": 101, "output_format": "webp"}, "output_compression", "invalid_value", "100"),
        ({"background": "transparent"}, "background", "invalid_value", "this model draws opaque pictures"),
        ({"background": "transparent", "output_format": "jpeg"}, "background", "invalid_value", "jpeg files are opaque"),
        ({"stream": True, "response_format": "url"}, "response_format", "invalid_value", "a stream carries b64_json"),
        ({"stream": True, "partial_images": 4}, "partial_images", "invalid_value", "3"),
        ({"seed": -1}, "seed", "invalid_value", "0"),
        ({"seed": 1.5}, "seed", "invalid_value", "integer"),
        ({"seed": 10**18}, "seed", "invalid_value", "1000000000000000000"),
        ({"seed": 10**18 - 1, "n": 2}, "seed", "invalid_value", "seeds up to 1000000000000000000; the largest is 999999999999999999"),
        ({"truncation": 3}, "truncation", "invalid_value", "2"),
        ({"negative": "blue"}, "negative", "unsupported_parameter", "negative prompts are not supported"),
        ({"sed": 1}, "sed", "unknown_parameter", "there is no such parameter"),
    ],
    ids=str,
)
def test_what_is_refused(client: TestClient, values: dict[str, Any], param: str, code: str, message: str) -> None:
    response = client.post(URL, json={"prompt": "red", **values})
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["param"], error["code"]) == (400, "invalid_request_error", param, code)
    assert message in error["message"]
    assert error["message"].startswith(f"{param}: ")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"red"',
        b"\xff",
        b"[" * 100_000,
        b'{"prompt": "red", "n": ' + b"9" * 5000 + b"}",
        b'{"prompt": "red", "truncation": NaN}',
        b'{"prompt": "red", "n": 1e400}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "red", "\\ud800": 1}',
        b'{"prompt": "red", "size": "\\ud800"}',
        b'{"prompt": "red", "model": "\\ud800"}',
    ],
    ids=lambda body: repr(body[:40]),
)
def test_a_body_that_is_no_request(client: TestClient, body: bytes) -> None:
    response = client.post(URL, content=body, headers={"content-type": "application/json"})
    assert 400 <= response.status_code < 500
    assert response.json()["error"]["type"] == "invalid_request_error"
    # a page of another site can send this without asking first
    assert client.post(URL, content=b'{"prompt": "red"}', headers={"content-type": "text/plain"}).json()["error"]["code"] == "invalid_json"


def test_half_a_character_is_sent_back(client: TestClient) -> None:
    response = client.post(URL, content=b'{"prompt": "red", "user": "\\ud800"}', headers={"content-type": "application/json"})
    assert response.json()["safety_identifier"] == "\ud800"


def test_models(client: TestClient) -> None:
    own = {"id": "small", "object": "model", "created": 5, "owned_by": "gan_t2i", "resolution": 16, "transparent": False, "max_tokens": 16}
    assert client.get("/v1/models").json() == {"object": "list", "data": [own]}
    assert client.get("/v1/models/small").json() == own
    for response in (client.get("/v1/models/a/b"), client.post(URL, json={"prompt": "red", "model": "a/b"})):
        error = response.json()["error"]
        assert (response.status_code, error["param"], error["code"]) == (404, "model", "model_not_found")
        assert error["message"] == "there is no model 'a/b' here; the model is 'small'"
