"""The benchmark as a whole, over models whose worth is known."""

import json
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from gan_t2i.data.builtin.shapes import draw_scene
from gan_t2i.evaluation.shapes.prompts import SUITE_TASKS, load_prompts
from gan_t2i.evaluation.shapes.suite import run_suite

SCENES = {prompt.caption: prompt.scene for prompts in load_prompts().values() for prompt in prompts}


def perfect(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
    return [draw_scene(SCENES[prompt], 32) for prompt in prompts for _ in seeds]


def ignoring(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
    """Pictures as good as the real ones, of other prompts."""
    captions = list(SCENES)
    return [draw_scene(SCENES[captions[(captions.index(prompt) * 7 + seed * 53) % len(captions)]], 32) for prompt in prompts for seed in seeds]


def test_a_perfect_model_passes_and_chance_is_low() -> None:
    result = run_suite(perfect, seeds=1, progress=False)
    assert list(result.tasks) == list(SUITE_TASKS)
    for task, found in result.tasks.items():
        assert found.score >= 0.99, task
        assert found.count == 100
        # one in 18 of shape and size, one in 53 of the colours; the others are many
        assert 0 <= found.chance < 0.12, task
    assert result.tasks["single"].chance > 0.02
    assert result.scalars().keys() == {f"Metrics/shapes/{task}" for task in SUITE_TASKS}


def test_a_model_that_ignores_the_prompt_is_at_chance() -> None:
    result = run_suite(ignoring, seeds=2, limit=30, progress=False)
    for task, found in result.tasks.items():
        assert abs(found.score - found.chance) < 0.1, task
        assert found.count == 60


def test_failures_name_prompt_and_contents() -> None:
    def half(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        """Right for even seeds, empty for odd ones; for the first prompt always empty."""
        first = load_prompts()["single"][0].caption
        empty = Image.new("RGB", (32, 32), (250, 250, 250))
        return [empty if seed % 2 or prompt == first else draw_scene(SCENES[prompt], 32) for prompt in prompts for seed in seeds]

    result = run_suite(half, seeds=2, limit=6, progress=False)
    assert result.tasks["single"].score == pytest.approx(5 / 12)
    assert result.tasks["two"].score == 0.5
    worst = result.failures[0]
    assert (worst.task, worst.prompt, worst.score) == ("single", load_prompts()["single"][0], 0)
    assert [failure.task for failure in result.failures].count("counting") == 4
    values = json.loads(json.dumps(result.to_json()))
    assert values["tasks"]["relations"] == {"score": 0.5, "chance": result.tasks["relations"].chance, "count": 12}
    entry = {"task": "single", "asked": worst.prompt.caption, "seed": 0, "seen": "nothing, on white", "wrong": ["count"]}
    assert values["failures"][0] == entry
    assert result.table().splitlines()[1].split()[:2] == ["single", "0.417"]
    picture = result.sheet()
    assert picture is not None
    assert picture.width > 2 * 400
    pixels = np.asarray(picture.convert("L"))
    assert (pixels[:30] < 128).any()  # the caption


def test_prompts_of_ones_own_and_nothing_failed() -> None:
    few = {task: prompts[50:52] for task, prompts in load_prompts().items()}
    result = run_suite(perfect, seeds=1, prompts=few, progress=False)
    assert all(found.count == 2 for found in result.tasks.values())
    assert result.failures == ()
    assert result.sheet() is None


def test_every_prompt_is_requested_once_with_every_seed() -> None:
    requests: list[tuple[str, int]] = []

    def generate(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        requests.extend((prompt, seed) for prompt in prompts for seed in seeds)
        return perfect(prompts, seeds)

    run_suite(generate, seeds=3, limit=11, progress=False)
    assert requests == [(prompt.caption, seed) for task in SUITE_TASKS for prompt in load_prompts()[task][:11] for seed in range(3)]


@pytest.mark.parametrize("values", [{"seeds": 0}, {"limit": 1}])
def test_refuses_too_few(values: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least one seed and two prompts"):
        run_suite(perfect, progress=False, **values)  # type: ignore[arg-type]
