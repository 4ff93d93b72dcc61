"""The benchmark of shapes: fixed prompts, an exact grader, and the suite."""
