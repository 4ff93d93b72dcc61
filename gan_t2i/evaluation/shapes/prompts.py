"""The benchmark's prompts: for each of six tasks a fixed list of captions with the scenes that they describe, none of them in training.

The lists are in ``prompts.json``, so that every model gets the same ones. `make_prompts` made them; after a change of the grammar, rewrite
the file with

    python -c "from gan_t2i.evaluation.shapes.prompts import *; PATH.write_text(to_text(make_prompts()), encoding='utf-8')"

For the set basic-shapes, `basic_prompts` samples shorter lists of three of the tasks.

The tasks are those of GenEval (Ghosh et al. 2023, arXiv 2310.11513), with shapes.
"""

import functools
import itertools
import json
import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from gan_t2i.data.builtin import basic_shapes
from gan_t2i.data.builtin.shapes import Scene, captions, sample_scene
from gan_t2i.data.builtin.shapes_grammar import Task

SuiteTask = Literal["single", "colours", "position", "two", "relations", "counting"]
SUITE_TASKS: tuple[SuiteTask, ...] = get_args(SuiteTask)
PATH = Path(__file__).with_name("prompts.json")
PER_TASK = 100

# The kinds of scenes in a task. Held-out single objects have eight of the twelve colours; those with a place have all of them.
_SCENES: dict[SuiteTask, tuple[Task, ...]] = {
    "single": ("single",),
    "colours": ("single", "position"),
    "position": ("position",),
    "two": ("two",),
    "relations": ("relation",),
    "counting": ("count",),
}
_CANDIDATES = 800  # scenes sampled per kind, from which the lists take a balanced choice


@dataclass(frozen=True)
class Prompt:
    """A caption and the scene that it describes. The caption is never parsed."""

    caption: str
    scene: Scene


Prompts = dict[SuiteTask, list[Prompt]]


@functools.cache
def load_prompts() -> Prompts:
    """The fixed lists, task by task."""
    values = json.loads(PATH.read_text(encoding="utf-8"))
    return {task: [Prompt(entry["caption"], Scene.from_json(entry["scene"])) for entry in values[task]] for task in SUITE_TASKS}


def prompts_for(source: str | None) -> Prompts:
    """Return the lists for a model that was trained on `source`: in its own words for basic-shapes, else the fixed lists."""
    return basic_prompts() if source == "basic-shapes" else load_prompts()


@functools.cache
def basic_prompts() -> Prompts:
    """Return at most 100 held-out scenes of basic-shapes for each of single, two and relations, in plain wording; there are few single ones."""
    result: Prompts = {}
    for task in ("single", "two", "relations"):
        rng = random.Random(f"basic prompts {task}")
        [kind] = _SCENES[task]
        scenes = [basic_shapes.sample_scene(rng, split="heldout", task=kind) for _ in range(_CANDIDATES)]
        distinct = {basic_shapes.captions(scene)[0]: scene for scene in scenes}
        result[task] = [Prompt(caption, scene) for caption, scene in distinct.items()][:PER_TASK]
    return result


def make_prompts(seed: int = 0) -> Prompts:
    """Sample the lists: held-out scenes in plain wording, without repeated captions in a task, balanced in what the task grades.

    Any first part of a list is as balanced as the whole.
    """
    result: Prompts = {}
    for task in SUITE_TASKS:
        rng = random.Random(f"shapes prompts {seed} {task}")
        scenes = [sample_scene(rng, split="heldout", task=kind) for _ in range(_CANDIDATES) for kind in _SCENES[task]]
        distinct = {captions(scene)[0]: scene for scene in scenes}
        groups: defaultdict[tuple[str, ...], list[Prompt]] = defaultdict(list)
        for caption, scene in distinct.items():
            groups[_graded(task, scene)].append(Prompt(caption, scene))
        in_turn = itertools.zip_longest(*(groups[key] for key in sorted(groups)))  # the first of each group, then the second of each
        result[task] = [prompt for row in in_turn for prompt in row if prompt is not None][:PER_TASK]
        assert len(result[task]) == PER_TASK, task
    return result


def _graded(task: SuiteTask, scene: Scene) -> tuple[str, ...]:
    """The values that the task grades; its list has each equally often."""
    thing = scene.objects[0]
    values: dict[SuiteTask, tuple[object, ...]] = {
        "single": (thing.shape, thing.size),
        "colours": (thing.colour, scene.background),
        "position": (thing.position,),
        "relations": (scene.relation,),
    }
    return tuple(map(str, values.get(task, (scene.count,))))


def to_text(prompts: Prompts) -> str:
    """The file's text: JSON with one prompt per line."""
    tasks = []
    for task, entries in prompts.items():
        lines = [json.dumps({"caption": entry.caption, "scene": entry.scene.to_json()}) for entry in entries]
        tasks.append(f"{json.dumps(task)}: [\n" + ",\n".join(lines) + "\n]")
    return "{\n" + ",\n".join(tasks) + "\n}\n"
