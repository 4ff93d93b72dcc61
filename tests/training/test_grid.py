"""The grid of fixed prompts: what it asks for."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from gan_t2i.training.grid import grid_captions
from gan_t2i.training.session import Session


@pytest.mark.parametrize(("asked", "drawn"), [(4, 4), (8, 5)])  # of 3 captions to train on and 2 held out
def test_no_prompt_is_drawn_twice(asked: int, drawn: int, make_session: Callable[..., Session], tmp_path: Path) -> None:
    lines = []
    for number in range(40):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(tmp_path / f"{number}.png")
        heldout = number % 4 == 3
        text = f"a blue {number % 8}" if heldout else f"a red {number % 3}"
        lines.append(json.dumps({"file_name": f"{number}.png", "text": text, "split": "heldout" if heldout else "train"}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    session = make_session(data={"source": str(tmp_path)}, report={"grid_prompts": asked})
    labels = [label for _, label in grid_captions(session)]
    assert len(labels) == len(set(labels)) == drawn
    assert {label.split("(")[1] for label in labels} == {"seen)", "held out)"}
