"""The benchmark of shapes: a model draws the fixed prompts, every picture is graded, and each task's share of passes stands beside chance."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from gan_t2i.core.images import composite_on_grey, save_png, sheet
from gan_t2i.evaluation.results import result_path, write_json
from gan_t2i.evaluation.shapes.grader import Grade, grade_view
from gan_t2i.evaluation.shapes.parse import View, look
from gan_t2i.evaluation.shapes.prompts import SUITE_TASKS, Prompt, Prompts, SuiteTask, load_prompts
from gan_t2i.runs import RunFolder

Generate = Callable[[Sequence[str], Sequence[int]], list[Image.Image]]
"""Prompts and seeds -> pictures, prompt by prompt, each with its seeds in order."""

SEEDS = 4  # pictures a prompt, unless told
_CHUNK = 10  # prompts drawn at a time, for the progress bar
_OTHERS = 10  # other prompts of the task that each picture is graded against for chance
_WORST = 4  # prompts of a task among the failures
_ROW = 512  # width in pixels of a failure in the sheet


@dataclass(frozen=True)
class PromptResult:
    """What became of one prompt: a picture and its grade for every seed."""

    task: SuiteTask
    prompt: Prompt
    pictures: tuple[Image.Image, ...]
    grades: tuple[Grade, ...]

    @property
    def score(self) -> float:
        return fmean(grade.passed for grade in self.grades)


@dataclass(frozen=True)
class TaskResult:
    """The share of pictures that passed, the same with every picture held against other prompts of the task, and the number of pictures."""

    score: float
    chance: float
    count: int


@dataclass(frozen=True)
class SuiteResult:
    """Everything that a run of the benchmark found; `failures` are the worst prompts of each task, worst first."""

    seeds: int
    limit: int | None
    tasks: dict[SuiteTask, TaskResult]
    failures: tuple[PromptResult, ...]

    @property
    def changed(self) -> dict[str, int]:
        """The settings that are not the defaults, which the names of its files tell."""
        return {} | ({"limit": self.limit} if self.limit else {}) | ({"seeds": self.seeds} if self.seeds != SEEDS else {})

    def scalars(self) -> dict[str, float]:
        """What TensorBoard shows."""
        return {f"Metrics/shapes/{task}": result.score for task, result in self.tasks.items()}

    def table(self) -> str:
        """Task, score, chance and number of pictures, a line each."""
        lines = [f"{'task':10}  {'score':>5}  {'chance':>6}  {'n':>4}"]
        for task, result in self.tasks.items():
            lines.append(f"{task:10}  {result.score:5.3f}  {result.chance:6.3f}  {result.count:4}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain values: scores, and the failures with what was asked, what was seen and what of it is wrong."""
        return {
            "suite": "shapes",
            "seeds": self.seeds,
            "limit": self.limit,
            "tasks": {task: {"score": result.score, "chance": result.chance, "count": result.count} for task, result in self.tasks.items()},
            "failures": [
                {"task": failure.task, "asked": failure.prompt.caption, "seed": seed, "seen": grade.seen, "wrong": list(grade.wrong)}
                for failure in self.failures
                for seed, grade in enumerate(failure.grades)
                if not grade.passed
            ],
        }

    def sheet(self) -> Image.Image | None:
        """The failures as one picture, each row under what was asked and what was seen in its first failed picture; None without any."""
        if not self.failures:
            return None
        captions = []
        for failure in self.failures:
            first = next(number for number, grade in enumerate(failure.grades) if not grade.passed)
            captions.append(f"{failure.task}: {failure.prompt.caption}. Picture {first + 1}: {failure.grades[first].seen}")
        side = self.failures[0].pictures[0].width
        # in whole multiples of a picture, wide enough that three lines of text hold what was asked and what was seen
        cell = -(-_ROW // (self.seeds * side)) * side
        return sheet([failure.pictures for failure in self.failures], captions, cell=cell)


def run_suite(
    generate: Generate, *, seeds: int = SEEDS, limit: int | None = None, progress: bool = True, prompts: Prompts | None = None
) -> SuiteResult:
    """Let `generate` draw every prompt with the seeds 0, 1, ... and grade the pictures.

    `limit` takes only the first so many prompts of each task; `prompts` replaces the fixed lists. Chance needs two prompts a task.
    """
    if seeds < 1 or (limit is not None and limit < 2):
        raise ValueError(f"seeds = {seeds}, limit = {limit}: at least one seed and two prompts a task")
    tasks: dict[SuiteTask, TaskResult] = {}
    failures: list[PromptResult] = []
    whole = prompts or load_prompts()
    if limit is not None and limit >= max(map(len, whole.values())):
        limit = None  # all the same, and named like it
    lists = {task: whole[task][:limit] for task in SUITE_TASKS}
    total = sum(map(len, lists.values())) * seeds
    with tqdm(total=total, desc="shapes", unit="img", disable=None if progress else True) as bar:
        for task, entries in lists.items():
            pictures: list[Image.Image] = []
            for start in range(0, len(entries), _CHUNK):
                drawn = generate([entry.caption for entry in entries[start : start + _CHUNK]], range(seeds))
                pictures += drawn
                bar.update(len(drawn))
            tasks[task], results = _grade_task(task, entries, pictures, seeds)
            failed = [result for result in results if result.score < 1]
            failures += sorted(failed, key=lambda result: (result.score, -sum(len(grade.wrong) for grade in result.grades)))[:_WORST]
    return SuiteResult(seeds, limit, tasks, tuple(failures))


def write_result(
    result: SuiteResult,
    head: Mapping[str, object],
    run: RunFolder | None,
    nimg: int,
    json_file: Path | None = None,
    sheet_file: Path | None = None,
) -> list[Path]:
    """Write scores after `head` and the sheet of failures, where there are any, into the run's evaluation/ or where told; returns the files.

    Without a run, only what is told. Raises `UsageError` where a file cannot be written.
    """
    if run is not None:
        path = result_path(run, "shapes", nimg, result.changed)
        json_file, sheet_file = json_file or path, sheet_file or path.with_suffix(".png")
    written = []
    if json_file is not None:
        write_json(json_file, {**head, **result.to_json()})
        written.append(json_file)
    picture = result.sheet()
    if sheet_file is not None and picture is not None:
        save_png(picture, sheet_file)
        written.append(sheet_file)
    return written


def _grade_task(
    task: SuiteTask, entries: Sequence[Prompt], pictures: Sequence[Image.Image], seeds: int
) -> tuple[TaskResult, list[PromptResult]]:
    """Grade the pictures of a task, `seeds` of them for each of its prompts."""
    assert len(pictures) == len(entries) * seeds, (len(pictures), len(entries), seeds)
    views = [look(np.asarray(composite_on_grey(picture))) for picture in pictures]
    results = []
    for number, entry in enumerate(entries):
        own = slice(number * seeds, (number + 1) * seeds)
        grades = tuple(grade_view(view, entry.scene, task) for view in views[own])
        results.append(PromptResult(task, entry, tuple(pictures[own]), grades))
    return TaskResult(fmean(result.score for result in results), _chance(task, entries, views, seeds), len(views)), results


def _chance(task: SuiteTask, entries: Sequence[Prompt], views: Sequence[View], seeds: int) -> float:
    """The share of passes where the captions are shuffled: every picture against a few prompts of its task that are not its own."""
    rng = random.Random(f"shapes chance {task}")
    passed = []
    for index, view in enumerate(views):
        own = index // seeds
        for other in rng.sample(range(len(entries) - 1), min(_OTHERS, len(entries) - 1)):
            passed.append(grade_view(view, entries[other + (other >= own)].scene, task).passed)
    return fmean(passed)
