"""The page's own routes: pictures of points, words, and what the page may load."""

import base64
import io
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image, ImageChops

from gan_t2i import Text2Image
from gan_t2i.sampling.explain import MOST_WORDS, explain
from gan_t2i.sampling.explore import mix
from gan_t2i.serving.page import content_policy
from gan_t2i.serving.settings import Limits

PROMPT = "a red circle"


def draw(client: TestClient, **values: Any) -> Image.Image:
    response = client.post("/draw", json={"prompt": PROMPT, **values})
    assert response.status_code == 200, response.text
    assert response.headers["cache-control"] == "no-store"
    return Image.open(io.BytesIO(response.content))


def same(a: Image.Image, b: Image.Image) -> bool:
    return ImageChops.difference(a, b).getbbox() is None


def test_the_page_loads_nothing_from_elsewhere(client: TestClient) -> None:
    response = client.get("/")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert not re.search(r"(src|href)=\"(?!#|data:)|https?://|@import", response.text)
    policy = response.headers["content-security-policy"]
    assert policy == content_policy(response.text)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy


def test_a_point_in_the_middle_is_the_picture_of_the_seed(client: TestClient, model: Text2Image) -> None:
    drawn = draw(client, seed=3, truncation=0.5)
    assert same(drawn, model.generate(PROMPT, seeds=3, truncation_psi=0.5)[0])
    assert drawn.info["Software"].startswith("gan_t2i")
    other = "two blue squares"
    assert same(draw(client, seed=3, to=other, t=1), model.generate(other, seeds=3)[0])
    assert not same(draw(client, seed=3, x=0.5), draw(client, seed=3))
    assert not same(draw(client, seed=3, x=0.5), draw(client, seed=3, y=0.5))


def test_a_prompt_is_encoded_once(client: TestClient, model: Text2Image, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[str] = []
    encode = model.encoder.encode
    monkeypatch.setattr(model.encoder, "encode", lambda prompts: encoded.extend(prompts) or encode(prompts))
    for seed in range(3):
        draw(client, seed=seed, to="two blue squares", t=0.5)
    assert encoded == [PROMPT, "two blue squares"]


@pytest.mark.parametrize("values", [{"prompt": " "}, {"t": 2}, {"x": -1.5}, {"seed": -1}, {"truncation": "1"}, {"size": "64x64"}])
def test_points_outside_of_the_plane_are_refused(client: TestClient, values: dict[str, Any]) -> None:
    response = client.post("/draw", json={"prompt": PROMPT, **values})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == next(iter(values))


def test_a_mixed_point_is_a_mix(client: TestClient, model: Text2Image) -> None:
    other = "two blue squares"
    mixes = list(mix(model, PROMPT, other, seeds=(3, 3)))
    assert same(draw(client, seed=3, to=other, t=0.05, mixed=True), mixes[0])
    assert same(draw(client, seed=3, to=other, t=1, mixed=True), mixes[-1])


def test_a_model_that_cannot_mix_says_so(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gan_t2i.sampling.explore.Block", Text2Image)  # so that no module is one
    response = client.post("/draw", json={"prompt": PROMPT, "to": "two blue squares", "t": 0.5, "mixed": True})
    assert response.status_code == 400
    assert response.json()["error"]["message"] == "mixed: the generator 'style' does not draw in blocks: its pictures cannot be mixed"


def test_effects_tell_what_the_words_change(client: TestClient, model: Text2Image) -> None:
    words = client.post("/words", json={"prompt": PROMPT}).json()["words"]
    assert words == [{"word": word, "known": True} for word in ("a", "red", "circle")]
    effects = client.post("/effects", json={"prompt": PROMPT, "seed": 1}).json()["effects"]
    assert [effect["share"] for effect in effects] == [word.change.mean().item() for word in explain(model, PROMPT, seed=1).words]
    masks = [np.asarray(Image.open(io.BytesIO(base64.b64decode(effect["mask"]))).getchannel("A")) for effect in effects]
    assert all(mask.shape == (model.info.resolution,) * 2 for mask in masks)
    assert min(mask.min() for mask in masks) == 0  # the largest change of all is the clearest place


@pytest.mark.parametrize("prompt", ["circle", "circle " * (MOST_WORDS + 1), "unfathomableness " * 20])
def test_a_prompt_that_cannot_be_explained_has_words_alone(client: TestClient, prompt: str) -> None:
    assert len(client.post("/words", json={"prompt": prompt}).json()["words"]) == len(prompt.split())
    assert client.post("/effects", json={"prompt": prompt}).json() == {"effects": []}


def test_unknown_words_are_told_to_the_client_alone(connect: Callable[..., TestClient], said: list[str]) -> None:
    client = connect(Text2Image.load("pretrained:shapes64"))
    prompt = 'a red Dog, above (cat) "bird" circle\'s red/lizard yellow-red'
    words = client.post("/words", json={"prompt": prompt}).json()["words"]
    client.post("/draw", json={"prompt": prompt})
    assert said[-2:] == ["POST /words 200", "POST /draw 200"]
    assert not any("dog" in line.lower() for line in said)
    assert [word["word"] for word in words] == prompt.split()
    assert [word["word"] for word in words if not word["known"]] == ["Dog,", "(cat)", '"bird"', "circle's", "red/lizard"]


def test_the_page_learns_how_much_of_a_prompt_is_read(client: TestClient, model: Text2Image) -> None:
    answer = client.post("/words", json={"prompt": 20 * "red "}).json()
    assert (answer["tokens"], answer["max_tokens"]) == (22, model.encoder.max_tokens)


def test_the_page_itself_needs_no_key_and_its_routes_do(connect: Callable[..., TestClient]) -> None:
    client = connect(keys=["secret"])
    assert client.get("/").status_code == 200
    assert client.post("/draw", json={"prompt": PROMPT}).status_code == 401
    assert client.post("/draw", json={"prompt": PROMPT}, headers={"Authorization": "Bearer secret"}).status_code == 200


def test_a_full_queue_refuses_the_page_too(connect: Callable[..., TestClient]) -> None:
    response = connect(limits=Limits(pictures=0)).post("/draw", json={"prompt": PROMPT})
    assert response.status_code == 429
    assert response.json()["error"]["code"] == "queue_full"
