"""The page without a server: it draws in a real browser what `sample` draws, and loads nothing from elsewhere."""

import base64
import functools
import http.server
import io
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

from gan_t2i import GanT2IError, Text2Image
from gan_t2i.sampling.explain import explain
from gan_t2i.sampling.explore import draw_point
from gan_t2i.serving.web import export_web, packages, static_page

DRIVER = shutil.which("chromedriver")
POINTS: list[dict[str, Any]] = [
    {"prompt": "a red circle", "seed": 3, "truncation": 1.0},
    {"prompt": "a green SQUARE on white", "seed": 999_999_999, "truncation": 0.4},
    {"prompt": "a red circle", "seed": 3, "truncation": 1.0, "x": 0.5, "y": -0.3},
    {"prompt": "a red circle", "seed": 0, "truncation": 1.0, "to": "a green square, and a blue one", "t": 0.4},
    {"prompt": "a red circle", "seed": 0, "truncation": 1.0, "to": "a green square", "t": 1},
    {"prompt": "a red circle " * 20, "seed": 7, "truncation": 1.0},
    {"prompt": "a red circle", "seed": 3, "truncation": 0.7, "to": "a green square, and a blue one", "t": 0.3, "mixed": True, "x": 0.5},
    {"prompt": "a green square, and a blue one", "seed": 0, "truncation": 1.0, "to": "a red circle", "t": 0.6, "mixed": True},
    {"prompt": "a red circle", "seed": 0, "truncation": 1.0, "to": "a green square", "t": 1, "mixed": True},
]


def test_the_page_allows_no_other_host() -> None:
    html = static_page(71_400_000)
    assert "default-src 'none'; script-src 'self' 'wasm-unsafe-eval' 'sha256-" in html
    assert 'data-megabytes="71"' in html
    assert html.index('src="engine.js"') < html.index("window.answer")
    assert "http://" not in html
    assert "https://" not in html


def test_without_npm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GAN_T2I_CACHE", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(GanT2IError, match="needs the command npm"):
        packages()
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(subprocess, "run", lambda command, **options: subprocess.CompletedProcess(command, 1, "", "no network\nmore"))
    with pytest.raises(GanT2IError, match=r"^npm cannot get onnxruntime-web@1\.30\.0: no network$"):
        packages()
    archive = tmp_path / "archive.tgz"
    archive.touch()
    monkeypatch.setattr(subprocess, "run", lambda command, **options: subprocess.CompletedProcess(command, 0, f"{archive}\n", ""))
    with pytest.raises(GanT2IError, match="npm got another onnxruntime-web"):
        packages()
    assert not [*(tmp_path / "web").iterdir()]


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files, and keeps quiet. One file waits until `go` is set."""

    go = threading.Event()

    extensions_map = {**http.server.SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript", ".wasm": "application/wasm"}

    def do_GET(self) -> None:
        """Send a file."""
        if self.path == "/held/model/generator.onnx":
            self.go.wait(60)
        super().do_GET()

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def site(model: Text2Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the small model's page."""
    folder = tmp_path_factory.mktemp("web")
    try:
        packages()
    except GanT2IError as error:
        pytest.skip(f"without a registry of npm there are no packages: {error}")
    export_web(model, folder / "page")
    return folder


@pytest.fixture(scope="module")
def browser(site: Path) -> Iterator[webdriver.Chrome]:
    """A browser on the page of the small model."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever).start()
        options = webdriver.ChromeOptions()
        for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        driver.set_script_timeout(60)
        driver.get(f"http://127.0.0.1:{server.server_address[1]}/page/#p=a+red+circle")
        yield driver
        driver.quit()
        server.shutdown()


def ask(browser: webdriver.Chrome, path: str, body: dict[str, Any]) -> Any:
    script = """const [path, body, done] = arguments;
        const text = async result => path === "draw" ? btoa(String.fromCharCode(...new Uint8Array(await result.arrayBuffer()))) : result.json();
        answer(path, body).then(text).then(done, fault => done(String(fault)));"""
    return browser.execute_async_script(script, path, body)


@pytest.mark.slow
@pytest.mark.skipif(DRIVER is None, reason="no chromedriver is installed (Debian: chromium-driver)")
@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed (Debian: npm)")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
class TestInABrowser:
    """The page of the small model."""

    def test_it_draws(self, browser: webdriver.Chrome) -> None:
        def is_done(driver: webdriver.Chrome) -> bool:
            script = """return [...document.querySelectorAll("#grid img")].every(
                image => image.alt.startsWith("a red circle, seed") && image.naturalWidth === 16)"""
            return bool(driver.execute_script(script))

        WebDriverWait(browser, 60).until(is_done)
        assert "16 px" in str(browser.execute_script("return document.getElementById('model').textContent"))
        assert "Drawn in" in str(browser.execute_script("return document.getElementById('status').textContent"))
        hosts = browser.execute_script("return [...new Set(performance.getEntriesByType('resource').map(entry => new URL(entry.name).host))]")
        assert {host for host in hosts if host} == {browser.execute_script("return location.host")}
        assert "Apache License" in (packages() / "LICENSE-tokenizers").read_text()
        assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []

    def test_it_says_what_it_loads_and_counts_that_for_no_drawing(self, browser: webdriver.Chrome, site: Path) -> None:
        def said(beginning: str) -> str:
            script = "const { textContent } = document.getElementById('status'); return textContent.startsWith(arguments[0]) && textContent"
            return str(WebDriverWait(browser, 60).until(lambda driver: driver.execute_script(script, beginning)))

        shutil.copytree(site / "page", site / "held")
        address = browser.current_url
        browser.get(f"{browser.execute_script('return location.origin')}/held/#p=a+red+circle")
        size = sum(file.stat().st_size for file in (site / "page").rglob("*") if file.is_file() and file.name != "index.html")
        assert said("Loading") == f"Loading the model and the program: {size / 1e6:.0f} MB."
        browser.execute_script("performance.now = () => 0")  # a clock that had started would give another number
        Handler.go.set()
        assert said("Drawn in").startswith("Drawn in 0 ms.")
        browser.get((site / "page" / "index.html").as_uri())
        assert "run python -m http.server in its folder" in said("Browsers do not run")
        browser.get(address)

    @pytest.mark.parametrize("point", POINTS, ids=range(len(POINTS)))
    def test_pictures_are_those_of_the_server(self, browser: webdriver.Chrome, model: Text2Image, point: dict[str, Any]) -> None:
        drawn = base64.b64decode(ask(browser, "draw", point))
        assert b"trainedAlgorithmicMedia" in drawn
        values = dict(point)
        prompt, psi, seed = (values.pop(name) for name in ("prompt", "truncation", "seed"))
        pictures = [draw_point(model, prompt, truncation_psi=psi, seed=number, **values) for number in (seed, seed + 1)]
        same, other = (np.abs(np.asarray(Image.open(io.BytesIO(drawn))).astype(int) - np.asarray(picture).astype(int)) for picture in pictures)
        assert same.max() <= 1 < other.max()

    def test_words(self, browser: webdriver.Chrome, model: Text2Image) -> None:
        point = {"prompt": "a red circle", "seed": 3, "truncation": 1.0}
        assert all(word["known"] for word in ask(browser, "words", point)["words"])  # the small model has no card
        found = ask(browser, "effects", point)["effects"]
        shares = [effect.change.mean().item() for effect in explain(model, "a red circle", seed=3).words]
        np.testing.assert_allclose([effect["share"] for effect in found], shares, atol=2 / 255)
        mask = Image.open(io.BytesIO(base64.b64decode(found[0]["mask"])))
        assert (mask.mode, mask.size) == ("LA", (16, 16))

    def test_a_model_without_blocks_has_no_mixes(self, browser: webdriver.Chrome, site: Path) -> None:
        def ways(name: str) -> Any:
            browser.get(f"{browser.execute_script('return location.origin')}/{name}/")
            ask(browser, "about", {})  # once the model is there
            return browser.execute_script("return [...document.querySelectorAll('#way option')].map(option => option.value)")

        shutil.copytree(site / "page", site / "blockless")
        file = site / "blockless" / "model" / "model.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "most_kept": 0}))
        assert [ways("blockless"), ways("page")] == [["blend"], ["blend", "mix"]]
