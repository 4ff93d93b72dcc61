"""A stand-in for CUDA graphs on a CPU."""

from collections.abc import Callable

from torch import Tensor

from gan_t2i.core.graphs import Replay


class Replayed:
    """Records functions and calls them again."""

    def __init__(self, *, wrong: float = 0.0, broken: str = "") -> None:
        self.wrong, self.broken = wrong, broken
        self.warm_ups = self.captures = self.replays = 0

    def warm_up(self, function: Callable[[], object]) -> None:
        self.warm_ups += 1
        function()

    def capture(self, function: Replay) -> Replay:
        if self.broken:
            raise RuntimeError(self.broken)
        self.captures += 1

        def replay() -> dict[str, Tensor]:
            self.replays += 1
            return {name: value + self.wrong for name, value in function().items()}

        return replay
