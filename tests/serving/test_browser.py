"""The page in a real browser: it draws while a prompt is typed, and can be used without a mouse."""

import contextlib
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_selenium_python import Axe
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from gan_t2i import Text2Image
from gan_t2i.serving.app import create_app
from gan_t2i.serving.server import make_server
from gan_t2i.serving.settings import Limits

DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(DRIVER is None, reason="no chromedriver is installed (Debian: chromium-driver)"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def addresses() -> Iterator[list[str]]:
    """Serves the packaged model, without keys and with one."""
    model = Text2Image.load("pretrained:shapes64")
    with contextlib.ExitStack() as stack:
        addresses = []
        for keys in ([], ["right"]):
            server = make_server(create_app(model, "shapes64", keys=keys, example="a red heart"), Limits())
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
            thread.start()
            stack.callback(thread.join)
            stack.callback(setattr, server, "should_exit", True)
            addresses.append(f"http://127.0.0.1:{listener.getsockname()[1]}/")
        yield addresses


@pytest.fixture
def address(addresses: list[str]) -> str:
    return addresses[0]


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--window-size=1200,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: webdriver.Chrome, address: str) -> Iterator["Page"]:
    browser.get("about:blank")
    yield Page(browser, address)
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


class Page:
    """What a user does with the page."""

    def __init__(self, browser: webdriver.Chrome, address: str) -> None:
        self.browser, self.address = browser, address

    def open(self, fragment: str = "") -> "Page":
        self.browser.get("about:blank")
        self.browser.get(self.address + fragment)
        self.wait(lambda: "64 px" in self.text("model"))
        return self

    def find(self, name: str) -> Any:
        return self.browser.find_element(By.ID, name)

    def text(self, name: str) -> str:
        return str(self.find(name).text)

    def all(self, selector: str) -> list[Any]:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def wait(self, condition: Callable[[], Any]) -> None:
        WebDriverWait(self.browser, 60).until(lambda _: condition())

    def is_in_sight(self, name: str) -> bool:
        """True if the element is in the window before anything is scrolled."""
        script = "const box = arguments[0].getBoundingClientRect(); return box.height > 0 && scrollY + box.bottom <= innerHeight"
        return bool(self.browser.execute_script(script, self.find(name)))

    def pixels(self, image: str = "#large") -> str:
        """The decoded picture, as text."""
        script = """const image = document.querySelector(arguments[0]), canvas = document.createElement("canvas");
            if (!image.naturalWidth) return "";
            canvas.width = canvas.height = image.naturalWidth;
            canvas.getContext("2d").drawImage(image, 0, 0);
            return canvas.toDataURL();"""
        return str(self.browser.execute_script(script, image))

    def asked(self, path: str) -> bool:
        """True once the page has had an answer from that path."""
        script = "return performance.getEntriesByType('resource').some(entry => entry.name.endsWith('/' + arguments[0]))"
        return bool(self.browser.execute_script(script, path))

    def type(self, prompt: str) -> None:
        self.find("prompt").send_keys(prompt)
        self.wait(lambda: self.is_done(self.find("prompt").get_property("value")))

    def is_done(self, prompt: str) -> bool:
        """True once the last picture of the grid is of the prompt."""
        alts = [image.get_attribute("alt") for image in self.all("#grid img")]
        return all(alt.startswith(f"{prompt}, seed ") for alt in alts)


def serious_faults(page: Page) -> list[Any]:
    """What axe finds."""
    axe = Axe(page.browser)
    axe.inject()
    found = axe.run()["violations"]
    return [(fault["id"], fault["nodes"]) for fault in found if fault["impact"] in ("serious", "critical")]


def test_pictures_change_while_a_prompt_is_typed(page: Page) -> None:
    page.open().wait(lambda: "such as: a red heart" in page.text("status"))
    page.type("a red heart")
    first = page.pixels()
    assert first == page.pixels("#grid img")
    page.type(" above a blue dog")
    assert page.pixels() not in ("", first)
    assert "Drawn in" in page.text("status")
    page.wait(lambda: page.all("#words .unknown"))
    assert [word.text for word in page.all("#words .unknown")] == ["dog"]


def test_the_picture_is_drawn_at_once_and_the_grid_after_a_pause(page: Page) -> None:
    page.open().type("a red heart")
    page.browser.execute_script("window.setTimeout = () => 0")  # no pause ever ends
    page.find("prompt").send_keys("s")
    page.wait(lambda: page.find("large").get_attribute("alt") == "a red hearts, seed 0")
    page.wait(lambda: "Drawn in" in page.text("status"))
    assert page.is_done("a red heart")
    assert page.browser.current_url.endswith("#p=a+red+heart")


def test_a_word_lights_what_it_changes(page: Page) -> None:
    page.open().type("a red heart above a blue star")
    [word] = [button for button in page.all("#words button") if button.text == "blue"]
    page.wait(lambda: page.asked("words"))
    assert not page.asked("effects")  # of seven more pictures
    webdriver.ActionChains(page.browser).move_to_element(word).perform()
    page.wait(lambda: page.find("light").get_attribute("class") == "on")
    assert "data:image/png" in page.find("light").value_of_css_property("mask-image")
    assert "changes" in (word.get_attribute("aria-label") or "")


def test_the_words_can_be_reached_by_keys(page: Page) -> None:
    page.open().type("red star")
    page.find("prompt").send_keys(Keys.TAB)
    page.wait(lambda: page.find("light").get_attribute("class") == "on")
    assert page.browser.switch_to.active_element.text == "red"


def test_an_explanation_that_is_not_wanted_any_more_is_given_up(page: Page) -> None:
    page.open().type("red star")
    page.browser.execute_script("""window.given = [];
        window.fetch = (path, options) => new Promise((resolve, reject) => options.signal.addEventListener("abort", () => {
            given.push(path);
            reject(options.signal.reason);
        }));""")
    word = page.all("#words button")[0]
    webdriver.ActionChains(page.browser).move_to_element(word).move_to_element(page.find("model")).perform()
    page.wait(lambda: page.browser.execute_script("return given.length"))
    assert page.browser.execute_script("return given") == ["effects"]


def test_a_mix_has_the_shapes_of_one_prompt_and_the_colours_of_another(page: Page) -> None:
    page.open("#p=a+red+heart&to=a+blue+star&t=0.5").wait(lambda: page.is_done("a red heart"))
    blended = page.pixels()
    page.find("way").send_keys("its")
    page.wait(lambda: "way=mix" in page.browser.current_url)
    page.wait(lambda: page.pixels() not in ("", blended))
    fragment = page.browser.current_url.partition("#")[2]
    page.wait(lambda: page.is_done("a red heart"))
    mixed = page.pixels()
    page.open("#" + fragment).wait(lambda: page.is_done("a red heart"))
    assert page.pixels() == mixed


def test_nothing_moves_where_that_is_not_wanted(page: Page) -> None:
    script = """return [...document.querySelectorAll("*")].map(element => getComputedStyle(element))
        .filter(style => style.transitionDuration !== "0s" || style.animationName !== "none").length"""
    moving = []
    for value in ("no-preference", "reduce"):
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-reduced-motion", "value": value}]})
        page.open()
        moving.append(page.browser.execute_script(script))
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert moving == [1, 0]  # the light


def test_the_pad_moves_the_chosen_picture_alone(page: Page) -> None:
    page.open().type("two blue stars")
    page.all("#grid button")[2].click()
    page.wait(lambda: page.pixels() == page.pixels("#grid button:nth-child(3) img"))
    before = page.pixels()
    webdriver.ActionChains(page.browser).click_and_hold(page.find("pad")).move_by_offset(60, -30).release().perform()
    page.wait(lambda: page.pixels() != before)
    assert page.pixels("#grid button:nth-child(3) img") == before
    across = page.find("x").get_property("value")
    page.find("x").send_keys(Keys.ARROW_LEFT)
    assert float(page.find("x").get_property("value")) < float(across)


def test_a_link_restores_everything(page: Page) -> None:
    page.open().type("a green ring")
    page.all("#grid button")[1].click()
    page.find("seed").clear()
    page.find("seed").send_keys("40")
    page.wait(lambda: "seed=40" in page.browser.current_url)
    page.wait(lambda: page.find("large").get_attribute("alt") == "a green ring, seed 41")
    page.wait(lambda: page.is_done("a green ring"))
    fragment, drawn = page.browser.current_url.partition("#")[2], page.pixels()
    page.open("#" + fragment).wait(lambda: page.find("large").get_attribute("alt") == "a green ring, seed 41")
    page.wait(lambda: page.is_done("a green ring"))
    page.wait(lambda: page.pixels() == drawn)
    assert page.find("seed").get_property("value") == "40"
    assert page.all("#grid button")[1].get_attribute("aria-pressed") == "true"
    page.wait(lambda: page.pixels("#grid button:nth-child(2) img") == drawn)
    assert page.pixels("#grid button:nth-child(1) img") != drawn


def test_a_blend_ends_in_the_second_prompt(page: Page) -> None:
    page.open("#p=a+red+circle&to=a+blue+star&t=1").wait(lambda: page.is_done("a red circle"))
    blended = page.pixels()
    page.open("#p=a+blue+star").wait(lambda: page.is_done("a blue star"))
    assert page.pixels() == blended


def test_a_picture_of_the_user_is_changed_while_a_prompt_is_typed(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "own.png"
    Image.new("RGB", (1500, 1200), "orange").save(path)
    page.open("#source=a+heart").type("a red heart")
    drawn = page.pixels()
    page.find("prompt").send_keys(Keys.TAB)
    assert page.find("own").get_attribute("open") is not None
    page.find("file").send_keys(str(path))
    page.wait(lambda: page.find("large").get_attribute("alt") == "a red heart, edited, seed 0")
    red = page.pixels()
    assert red not in ("", drawn)
    assert not page.find("others").is_displayed()
    assert not page.find("truncation").is_displayed()  # it has no effect here
    page.find("prompt").send_keys(" above a star")
    page.wait(lambda: page.find("large").get_attribute("alt") == "a red heart above a star, edited, seed 0")
    assert page.pixels() not in ("", red)
    hosts = page.browser.execute_script("return performance.getEntriesByType('resource').map(entry => new URL(entry.name).host)")
    assert set(hosts) <= {page.address.split("/")[2], ""}  # blobs have none
    assert serious_faults(page) == []
    page.find("clear").send_keys(Keys.ENTER)
    page.wait(lambda: page.is_done("a red heart above a star"))
    assert page.browser.switch_to.active_element == page.find("file")


def test_a_file_that_is_no_picture_is_told(page: Page, tmp_path: Path) -> None:
    (tmp_path / "own.png").write_text("text")
    page.open("#source=a+heart").type("a red heart")
    page.find("file").send_keys(str(tmp_path / "own.png"))
    page.wait(lambda: page.text("status").startswith("image: "))
    assert page.text("status").startswith("image: the file is not one of")
    page.browser.get_log("browser")  # the 400


def test_a_key_is_asked_for_and_told_right_from_wrong(browser: webdriver.Chrome, addresses: list[str]) -> None:
    page = Page(browser, addresses[1])
    browser.get(page.address)
    page.wait(lambda: page.text("status") == "This server needs its API key: type it above.")
    page.find("key").send_keys("wrong “key”", Keys.ENTER)
    page.wait(lambda: page.text("status") == "That key is wrong.")
    page.find("key").clear()
    page.find("key").send_keys("right", Keys.TAB)
    page.wait(lambda: page.text("status") == "Type what to draw, such as: a red heart.")
    assert page.text("model") == "shapes64, 64 px"
    assert not page.find("key").is_displayed()
    page.type("a red heart")
    page.open("#p=a+blue+star").wait(lambda: page.is_done("a blue star"))  # this tab remembers the key
    browser.get_log("browser")  # each 401


@pytest.mark.parametrize("width", [1200, 360])
def test_axe_finds_nothing_serious_and_messages_are_in_sight(page: Page, width: int) -> None:
    prompt = "a red heart above a blue dog " + 90 * "x"
    page.browser.set_window_size(width, 768)
    page.open(f"#p={prompt}&to=a+star").wait(lambda: page.is_done(prompt))
    assert serious_faults(page) == []
    assert page.browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    assert page.is_in_sight("status")
    assert width > 400 or page.find("prompt").rect["y"] < page.find("large").rect["y"] < page.find("seed").rect["y"]
    page.browser.set_window_size(1200, 900)


def test_without_a_prompt_there_is_no_picture(page: Page) -> None:
    page.open("#seed=5").wait(lambda: "Type what to draw" in page.text("status"))
    assert not page.find("download").is_displayed()
    assert {image.get_attribute("alt") for image in page.all("img")} == {""}
    assert [button.accessible_name for button in page.all("#grid button")] == [f"seed {number}" for number in range(5, 13)]
    page.type("a red heart")
    assert page.find("download").is_displayed()
    page.find("prompt").send_keys(Keys.CONTROL, "a", Keys.DELETE)
    page.wait(lambda: "Type what to draw" in page.text("status"))
    assert not page.find("download").is_displayed()
    assert not page.all("img[src]")


def test_what_the_model_does_not_read_is_told(page: Page) -> None:
    page.open("#seed=1e25&p=" + 100 * "red+").wait(lambda: "the model reads 64, the rest is left out." in page.text("status"))
    assert page.text("status").startswith("Drawn in ")
    assert page.find("large").get_attribute("alt").endswith("seed 999999999")  # the field's largest


def test_a_server_that_has_stopped_is_told(page: Page) -> None:
    page.open("#p=a+red+heart").wait(lambda: page.is_done("a red heart"))
    page.browser.execute_script("window.fetch = () => Promise.reject(new TypeError('Failed to fetch'))")
    page.find("prompt").send_keys("s")
    page.wait(lambda: not page.text("status").startswith("Drawn in"))
    assert page.text("status") == "The server does not answer: is gan-t2i serve still running?"
    assert page.is_in_sight("status")


def test_the_picture_can_be_downloaded(page: Page, tmp_path: Path) -> None:
    page.browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    page.open("#p=a+red+heart").wait(lambda: page.is_done("a red heart"))
    page.find("download").click()
    path = tmp_path / "a-red-heart-seed0.png"
    for _ in range(100):
        if path.exists():
            break
        time.sleep(0.1)
    assert b"trainedAlgorithmicMedia" in path.read_bytes()
