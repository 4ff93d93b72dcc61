"""The benchmark's fixed prompts."""

import random
from collections import Counter
from collections.abc import Sequence

import pytest
from PIL import Image

from gan_t2i.data.builtin.shapes import captions, composition, draw_scene, sample_scene, split_of, vocabulary
from gan_t2i.evaluation.shapes.prompts import PATH, SUITE_TASKS, load_prompts, make_prompts, prompts_for, to_text
from gan_t2i.evaluation.shapes.suite import run_suite


def test_the_file_is_what_the_function_makes() -> None:
    made = make_prompts()
    assert PATH.read_text(encoding="utf-8") == to_text(made)
    assert made == load_prompts()


@pytest.mark.parametrize("task", SUITE_TASKS)
def test_a_hundred_captions_true_of_held_out_scenes(task: str) -> None:
    prompts = load_prompts()[task]  # type: ignore[index]
    assert len({prompt.caption for prompt in prompts}) == len(prompts) >= 100
    assert all(prompt.caption == captions(prompt.scene)[0] for prompt in prompts)
    assert {split_of(prompt.scene) for prompt in prompts} == {"heldout"}


def test_no_composition_occurs_in_training() -> None:
    rng = random.Random("training")
    train = {composition(sample_scene(rng, split="train")) for _ in range(15000)}
    prompted = {composition(prompt.scene) for prompts in load_prompts().values() for prompt in prompts}
    assert len(train) > 5000
    assert not prompted & train


def test_graded_values_are_balanced() -> None:
    lists, words = load_prompts(), vocabulary()
    for part in (slice(None), slice(36)):
        places = Counter(prompt.scene.objects[0].position for prompt in lists["position"][part])
        relations = Counter(prompt.scene.relation for prompt in lists["relations"][part])
        counts = Counter(prompt.scene.count for prompt in lists["counting"][part])
        assert places.keys() == words.positions.keys()
        assert relations.keys() == set(words.relations)
        assert counts.keys() == {1, 2, 3, 4}
        for counted in (places, relations, counts):
            assert max(counted.values()) - min(counted.values()) <= 1
    assert {prompt.scene.objects[0].colour for prompt in lists["colours"]} == words.colours.keys()
    assert {prompt.scene.background for prompt in lists["colours"]} == words.backgrounds.keys()
    assert {prompt.scene.objects[0].size for prompt in lists["single"]} == words.sizes.keys()


def test_a_run_of_basic_shapes_has_prompts_in_its_own_words() -> None:
    prompts = prompts_for("basic-shapes")
    assert prompts_for("shapes") == prompts_for(None) == load_prompts()
    assert {task: len(entries) for task, entries in prompts.items()} == {"single": 4, "two": 100, "relations": 100}
    for entries in prompts.values():
        assert {split_of(prompt.scene) for prompt in entries} == {"heldout"}
        assert all("background" not in prompt.caption for prompt in entries)

    def perfect(captions: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        scenes = {prompt.caption: prompt.scene for entries in prompts.values() for prompt in entries}
        return [draw_scene(scenes[caption], 64) for caption in captions for _ in seeds]

    result = run_suite(perfect, seeds=1, progress=False, prompts=prompts)
    assert {task: found.score for task, found in result.tasks.items()} == {"single": 1, "two": 1, "relations": 1}
    assert max(found.chance for found in result.tasks.values()) < 0.3
