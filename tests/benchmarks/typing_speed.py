"""Types into the page of `gan-t2i serve` in Chromium, and times each letter until its picture is shown, in turns with the model alone.

gan-t2i serve & python tests/benchmarks/typing_speed.py http://127.0.0.1:8000
"""

import shutil
import sys
import time

import torch
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from serve_load import report

from gan_t2i import Text2Image

TEXT = "a red apple beside a green house, twemoji style, with a rocket"
PAUSE = 0.5  # seconds
WATCH = """
const prompt = document.getElementById("prompt"), large = document.getElementById("large");
let start = 0;
prompt.addEventListener("input", event => { start = event.timeStamp; }, true);
large.addEventListener("load", () => {
  if (large.alt.startsWith(prompt.value + ", seed")) window.shown?.(performance.now() - start);
});
"""


def chromium() -> webdriver.Chrome:
    """Start a browser without a window."""
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--window-size=1200,900"):
        options.add_argument(argument)
    return webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))


@torch.no_grad()
def alone(model: Text2Image, prompt: str) -> float:
    """Return the seconds that encoder and generator take for a prompt without a server."""
    start = time.perf_counter()
    model.generator(torch.zeros(1, model.generator.z_width), model.encoder.encode([prompt]))
    return time.perf_counter() - start


def main(address: str) -> None:
    """Type `TEXT`, and print the times."""
    model, browser = Text2Image.load(), chromium()
    typed, drawn = [], []
    try:
        browser.get(address)
        browser.execute_script(WATCH)
        field = browser.find_element(By.ID, "prompt")
        for number, letter in enumerate(TEXT):
            browser.execute_script("window.done = new Promise(resolve => { window.shown = resolve; });")
            field.send_keys(letter)
            typed.append(browser.execute_async_script("window.done.then(arguments[0])") / 1000)
            time.sleep(PAUSE)
            drawn.append(alone(model, f"{TEXT[:number]}{number}"))
            time.sleep(PAUSE)
    finally:
        browser.quit()
    report("a letter until its picture is shown", typed)
    report("encoder and generator alone", drawn)


if __name__ == "__main__":
    main(sys.argv[1])
