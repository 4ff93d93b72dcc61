"""The shapes benchmark: fixed prompts, an exact grader, and the suite."""
