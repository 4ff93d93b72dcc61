"""Edits: what the form may hold, which pictures are read, and that others are not kept waiting."""

import asyncio
import base64
import io
import random
import struct
import threading
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import httpx2
import numpy as np
import pytest
from connections import post
from fastapi.testclient import TestClient
from PIL import Image
from python_multipart.multipart import File

from gan_t2i import Text2Image
from gan_t2i.core.images import from_uint8, to_uint8
from gan_t2i.sampling import edit, inversion
from gan_t2i.serving.app import create_app
from gan_t2i.serving.settings import Limits

URL = "/v1/images/edits"


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edit, "STEPS", 2)


def file(picture: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    content = io.BytesIO()
    picture.save(content, form, **options)
    return content.getvalue()


RED = Image.new("RGB", (16, 16), "red")


def ask(client: TestClient, files: Any = None, **fields: Any) -> Any:
    values = {"prompt": "a blue circle", "seed": "3", **fields}
    return client.post(URL, data=values, files={"image": ("a.png", file(RED))} if files is None else files)


def picture(answer: Any) -> Image.Image:
    assert answer.status_code == 200, answer.text
    return Image.fromarray(np.asarray(Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"])))))


def test_the_answer_is_that_of_edit(client: TestClient, model: Text2Image) -> None:
    wanted = from_uint8(to_uint8([RED]))
    assert picture(ask(client)) == edit.edit(model, wanted, edit.Change("a blue circle", seed=3))
    answer = ask(client, source="a red circle", strength="2", size="40x40", output_format="webp", quality="hd", user="me", mask="")
    own = edit.edit(model, wanted, edit.Change("a blue circle", source="a red circle", strength=2, seed=3))
    difference = np.asarray(picture(answer), int) - np.asarray(own.resize((40, 40), Image.Resampling.LANCZOS), int)
    assert np.abs(difference).max() < 40
    assert answer.json()["data"][0]["seed"] == 3
    assert (answer.json()["quality"], answer.json()["safety_identifier"]) == ("high", "me")


def test_a_mask(client: TestClient) -> None:
    mask = Image.new("RGBA", RED.size, "black")
    mask.paste((0, 0, 0, 0), (0, 0, 8, 16))
    pixels = np.asarray(picture(ask(client, [("image[]", ("a", file(RED))), ("mask", ("b", file(mask)))], strength="3")))
    everywhere = np.asarray(picture(ask(client, strength="3")))
    assert (pixels[:, 8:] == (255, 0, 0)).all()
    assert (everywhere[:, 8:] != (255, 0, 0)).any()
    assert (pixels[:, :8] == everywhere[:, :8]).all()


def test_a_mask_is_upright_as_its_picture_is(client: TestClient) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = file(Image.new("RGB", (16, 32), "red"), "JPEG", exif=exif)
    masks = [file(Image.new("RGBA", size)) for size in ((32, 16), (16, 32))]
    assert [ask(client, {"image": lying, "mask": mask}).status_code for mask in masks] == [200, 400]


def bomb(width: int, height: int) -> bytes:
    """A PNG that says how large it is, and has no pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    )


IMAGE = ("image", ("a.png", file(RED)))


@pytest.mark.parametrize(
    ("files", "fields", "param", "code", "message"),
    [
        ([IMAGE, IMAGE], {}, "image", "invalid_value", "one picture for each request"),
        ([("image[]", IMAGE[1]), ("image[]", IMAGE[1])], {}, "image", "invalid_value", "one picture for each request"),
        ([("mask", IMAGE[1])], {}, "image", "missing_required_parameter", "send a picture as a file"),
        ([IMAGE, ("markup", IMAGE[1])], {}, "markup", "unknown_parameter", "there is no such file"),
        ([IMAGE, ("mask", IMAGE[1])], {}, "mask", "invalid_value", "no transparent places"),
        ([IMAGE, ("mask", ("b", file(Image.new("RGBA", (32, 32)))))], {}, "mask", "invalid_value", "another shape than the picture"),
        ([("image", ("a", b"text"))], {}, "image", "invalid_value", "the file is not one of: PNG"),
        ([("image", ("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>"))], {}, "image", "invalid_value", "the file is not one of: PNG"),
        ([("image", ("a", file(Image.effect_noise((99, 99), 99))[:-99]))], {}, "image", "invalid_value", "cannot be read"),
        ([("image", ("a", bomb(5000, 5000)))], {}, "image", "invalid_value", "it has 5,000 x 5,000 pixels, and at most 16,777,216"),
        ([("image", ("a", bomb(50000, 50000)))], {}, "image", "invalid_value", "pixels"),
        ([("image", ("a", file(RED.resize((4, 4)))))], {}, "image", "invalid_value", "less than 8 a side"),
        ([IMAGE], {"prompt": ""}, "prompt", "missing_required_parameter", "Field required"),
        ([IMAGE], {"prompt": ["red", "blue"]}, "prompt", "invalid_value", "given twice"),
        ([IMAGE], {"source": " "}, "source", "invalid_value", "say what to draw"),
        ([IMAGE], {"strength": "4"}, "strength", "invalid_value", "3"),
        ([IMAGE], {"strength": "nan"}, "strength", "invalid_value", "finite"),
        ([IMAGE], {"n": "two"}, "n", "invalid_value", "valid integer"),
        ([IMAGE], {"n": "11"}, "n", "invalid_value", "10"),
        ([IMAGE], {"truncation": "1"}, "truncation", "unknown_parameter", "no such parameter"),
        ([IMAGE], {"background": "transparent"}, "background", "invalid_value", "opaque pictures"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_refused(client: TestClient, files: Any, fields: dict[str, Any], param: str, code: str, message: str) -> None:
    response = ask(client, files, **fields)
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["param"], error["code"]) == (400, "invalid_request_error", param, code)
    assert message in error["message"]


def test_a_body_that_is_no_form(client: TestClient) -> None:
    for content, kind in ((b"{}", "application/json"), (b"", "multipart/form-data"), (b"red", "multipart/form-data; boundary=x")):
        error = client.post(URL, content=content, headers={"content-type": kind}).json()["error"]
        assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", None, "invalid_form")


def test_pages_of_other_sites_are_refused(client: TestClient) -> None:
    statuses = [client.post(URL, headers={"sec-fetch-site": site}).status_code for site in ("cross-site", "same-site", "same-origin")]
    assert statuses == [403, 403, 400]


def test_a_model_that_cannot_edit_says_so(client: TestClient, model: Text2Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(model.generator._modules, "mapping", None)
    error = ask(client).json()["error"]
    assert error["message"] == "model: the generator 'style' has no mapping network: it has no styles to draw your picture with"


def test_uploads_have_a_limit_of_their_own_and_stay_in_memory(connect: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("written to disk")

    monkeypatch.setattr(File, "flush_to_disk", refuse)
    client = connect(limits=Limits(body=100, upload=2 * 1024 * 1024))
    picture(ask(client, {"image": file(RED) + bytes(1536 * 1024)}))
    response = ask(client, {"image": file(RED) + bytes(2 * 1024 * 1024)})
    assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")
    assert client.post("/v1/images/generations", json={"prompt": "x" * 100}).status_code == 413


def test_an_upload_is_held_once_until_it_is_answered(model: Text2Image, monkeypatch: pytest.MonkeyPatch) -> None:
    search = Search(monkeypatch)
    size = 2 * 1024 * 1024
    app = create_app(model, "small", limits=Limits(bodies=size + size // 2))
    request = httpx2.Request("POST", URL, data={"prompt": "a blue circle"}, files={"image": file(RED) + bytes(size)})
    body, kind = request.read(), request.headers["content-type"]

    async def edit_two() -> list[Any]:
        leave = asyncio.Event()
        tracemalloc.start()
        first = asyncio.create_task(post(app, URL, body, leave, kind))
        await asyncio.to_thread(search.begun.wait, 30)
        assert size < tracemalloc.get_traced_memory()[0] < 1.5 * size
        tracemalloc.stop()
        second = await post(app, URL, body, kind=kind)
        leave.set()
        search.released.set()
        assert await first == []
        return second

    assert asyncio.run(edit_two())[0]["status"] == 429


def test_mutated_forms_are_answered(client: TestClient) -> None:
    values = {"prompt": "a blue circle", "n": "1", "size": "auto", "strength": "1", "seed": "0"}
    request = client.build_request(
        "POST", URL, data=values, files={"image": ("a.png", file(RED)), "mask": ("m.png", file(RED.convert("RGBA")))}
    )
    body, kind = request.read(), request.headers["content-type"]
    rng = random.Random(0)
    statuses = set()
    for _ in range(150):
        mutant = bytearray(body)
        for _ in range(rng.randint(1, 6)):
            start = rng.randrange(len(mutant))
            stop = start + rng.choice((1, 1, 8, 200))
            mutant[start:stop] = rng.choice((b"", rng.randbytes(2), mutant[start:stop] * 2, b"\r\n--", b"\xff", b'"', b"9" * 30))
        headers = {"content-type": kind + rng.choice(("", "", "", "; charset=hex", "x", "x" * 300))}
        statuses.add(client.post(URL, content=bytes(mutant), headers=headers).status_code)
    assert statuses <= {200, 400, 404}, statuses
    assert 400 in statuses


class Search:
    """Edits without end, one piece whenever it is released."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.released, self.steps = threading.Event(), threading.Event(), 0
        monkeypatch.setattr(edit, "STEPS", 10**6)
        step = inversion.Inversion.step

        def held(search: Any) -> None:
            self.begun.set()
            assert self.released.wait(30)
            self.steps += 1
            step(search)

        monkeypatch.setattr(inversion.Inversion, "step", held)


def test_others_have_their_turns_between_the_pieces_and_a_client_that_left_ends_them(
    model: Text2Image, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    search = Search(monkeypatch)
    app = create_app(model, "small")
    request = httpx2.Request("POST", URL, data={"prompt": "a blue circle", "n": "2"}, files={"image": file(RED)})

    async def leave_after_a_picture_of_another() -> int:
        leave = asyncio.Event()
        mine = asyncio.create_task(post(app, URL, request.read(), leave, request.headers["content-type"]))
        await asyncio.to_thread(search.begun.wait, 30)
        other = asyncio.create_task(post(app, "/v1/images/generations", b'{"prompt": "red"}'))
        search.released.set()
        assert (await other)[0]["status"] == 200
        assert not mine.done()
        leave.set()
        assert await mine == []
        await post(app, "/v1/images/generations", b'{"prompt": "red"}')  # behind the last piece
        return search.steps

    steps = asyncio.run(leave_after_a_picture_of_another())
    assert steps == search.steps
    assert said == ["POST /v1/images/generations 200", f"POST {URL} 499", "POST /v1/images/generations 200"]
