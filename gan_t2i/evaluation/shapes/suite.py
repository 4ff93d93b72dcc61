"""The shapes benchmark: grades the pictures of the fixed prompts, and reports each task's share of passes beside chance."""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from gan_t2i.core.images import composite_on_grey, sheet
from gan_t2i.evaluation.results import Generate, Result
from gan_t2i.evaluation.shapes.grader import Grade, grade_estimate
from gan_t2i.evaluation.shapes.parse import SceneEstimate, parse_image
from gan_t2i.evaluation.shapes.prompts import Prompt, Prompts, SuiteTask, load_prompts

SEEDS = 4  # default number of pictures per prompt
_OTHERS = 10  # other prompts of the task that each picture is graded against for chance
_WORST = 4  # prompts of a task among the failures
_ROW = 512  # width in pixels of a failure in the sheet


@dataclass(frozen=True)
class PromptResult:
    """One prompt with a picture and its grade for every seed."""

    task: SuiteTask
    prompt: Prompt
    pictures: tuple[Image.Image, ...]
    grades: tuple[Grade, ...]

    @property
    def score(self) -> float:
        """Share of the pictures that passed."""
        return fmean(grade.passed for grade in self.grades)


@dataclass(frozen=True)
class TaskResult:
    """Share of pictures that passed, the share that passed for other prompts of the task, and the number of pictures."""

    score: float
    chance: float
    count: int


@dataclass(frozen=True)
class ShapesResult(Result):
    """Scores of all tasks; `failures` are the worst prompts of each task, worst first."""

    suite: ClassVar = "shapes"
    defaults: ClassVar = {"limit": None, "seeds": SEEDS}

    seeds: int
    limit: int | None
    tasks: dict[SuiteTask, TaskResult]
    failures: tuple[PromptResult, ...]

    def scalars(self) -> dict[str, float]:
        return {f"Metrics/shapes/{task}": result.score for task, result in self.tasks.items()}

    def table(self) -> str:
        """A line per task: score, chance and number of pictures."""
        lines = [f"{'task':10}  {'score':>5}  {'chance':>6}  {'n':>4}"]
        for task, result in self.tasks.items():
            lines.append(f"{task:10}  {result.score:5.3f}  {result.chance:6.3f}  {result.count:4}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The scores, and each failed picture's prompt, parsed contents and faults."""
        return {
            "suite": self.suite,
            "seeds": self.seeds,
            "limit": self.limit,
            "tasks": {task: asdict(result) for task, result in self.tasks.items()},
            "failures": [
                {"task": failure.task, "asked": failure.prompt.caption, "seed": seed, "seen": grade.contents, "wrong": list(grade.faults)}
                for failure in self.failures
                for seed, grade in enumerate(failure.grades)
                if not grade.passed
            ],
        }

    def sheet(self) -> Image.Image | None:
        """The failures, each row under its prompt and the contents of its first failed picture; None without failures."""
        if not self.failures:
            return None
        captions = []
        for failure in self.failures:
            first = next(number for number, grade in enumerate(failure.grades) if not grade.passed)
            captions.append(f"{failure.task}: {failure.prompt.caption}. Picture {first + 1}: {failure.grades[first].contents}")
        side = self.failures[0].pictures[0].width
        # a whole multiple of a picture's side, wide enough for the caption in three lines
        cell = -(-_ROW // (self.seeds * side)) * side
        return sheet([failure.pictures for failure in self.failures], captions, cell=cell)


def run_suite(
    generate: Generate, *, seeds: int = SEEDS, limit: int | None = None, progress: bool = True, prompts: Prompts | None = None
) -> ShapesResult:
    """Generate every prompt with the seeds 0, 1, ... and grade the pictures.

    `limit` takes only the first prompts of each task, at least two, which chance needs; `prompts` replaces the fixed lists.
    """
    if seeds < 1 or (limit is not None and limit < 2):
        raise ValueError(f"seeds = {seeds}, limit = {limit}: at least one seed and two prompts a task")
    tasks: dict[SuiteTask, TaskResult] = {}
    failures: list[PromptResult] = []
    whole = prompts or load_prompts()
    if limit is not None and limit >= max(map(len, whole.values())):
        limit = None  # the full benchmark, with its file name
    lists = {task: entries[:limit] for task, entries in whole.items()}
    total = sum(map(len, lists.values())) * seeds
    with tqdm(total=total, desc="shapes", unit="img", disable=None if progress else True) as bar:
        for task, entries in lists.items():
            estimates, results = [], []
            for entry in entries:
                pictures = generate([entry.caption], range(seeds))
                found = [parse_image(np.asarray(composite_on_grey(picture))) for picture in pictures]
                grades = tuple(grade_estimate(estimate, entry.scene, task) for estimate in found)
                estimates.append(found)
                results.append(PromptResult(task, entry, tuple(pictures), grades))
                bar.update(seeds)
            score = fmean(result.score for result in results)
            tasks[task] = TaskResult(score, _chance(task, entries, estimates), len(entries) * seeds)
            failed = [result for result in results if result.score < 1]
            failures += sorted(failed, key=lambda result: (result.score, -sum(len(grade.faults) for grade in result.grades)))[:_WORST]
    return ShapesResult(seeds, limit, tasks, tuple(failures))


def _chance(task: SuiteTask, entries: Sequence[Prompt], estimates: Sequence[Sequence[SceneEstimate]]) -> float:
    """Share of passes with shuffled captions: every picture is graded against a few other prompts of its task."""
    rng = random.Random(f"shapes chance {task}")
    passed = []
    for own, found in enumerate(estimates):
        for estimate in found:
            for other in rng.sample(range(len(entries) - 1), min(_OTHERS, len(entries) - 1)):
                passed.append(grade_estimate(estimate, entries[other + (other >= own)].scene, task).passed)
    return fmean(passed)
