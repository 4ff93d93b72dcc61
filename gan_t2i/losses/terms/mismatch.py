"""Term `mismatch`: D must score a real image lower with captions that are not its own (Reed et al. 2016, arXiv 1605.05396)."""

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from gan_t2i.core.config import NonNegative
from gan_t2i.core.errors import GanT2IError
from gan_t2i.losses.adversarial import LOSSES
from gan_t2i.losses.inputs import MicroBatch, Scores
from gan_t2i.losses.term import KIND, LossTerm, RunParts, TermConfig
from gan_t2i.registry import register


@register(KIND, "mismatch")
class MismatchTerm(LossTerm):
    """Mean mismatch term of the adversarial loss over each image's negative captions."""

    class Config(TermConfig):
        """Settings of the term."""

        weight: NonNegative = 1.0
        negatives: tuple[Literal["random", "one_change", "nearest"], ...] = ("random",)
        """Mismatched captions per image, one per entry: any other image's (random), one with a single attribute wrong (one_change; needs data
        with scenes), or one of the nearest by text embedding (nearest)."""

    config: Config

    def check(self, run: Any) -> None:
        if self.active and run.batch < 2:
            raise ValueError("terms.mismatch needs a batch of at least two images, to pair one with the other's caption")
        for kind in sorted({*self.config.negatives} - {"random"}):
            run.data.require_packed(f"terms.mismatch.negatives {kind}")

    def prepare(self, run: RunParts, *, pretrained: bool = True) -> Mapping[str, nn.Module]:
        """Check that there is something to tell apart; see `LossTerm.prepare`."""
        data = run.dataset
        if self.active and min(len(data.train), len(data.train_caption_ids)) < 2:
            if len(data) == 1:
                why, remedy = "a single pair cannot be told apart from others", "add pictures"
            elif len(data.captions) == 1:
                why, remedy = "all pictures have the same caption: there is nothing to tell apart", "caption them"
            else:
                single = "picture" if len(data.train) < 2 else "caption"
                why = f"a single {single} is left to train on, as the others are held out, and it cannot be told apart from any other"
                remedy = "set data.holdout_fraction=0, add pictures"
            raise GanT2IError(f"{why}; {remedy}, or set terms.mismatch.weight=0")
        self._mismatch = LOSSES[run.adversarial].mismatch
        return {}

    def discriminator_loss(self, batch: MicroBatch, scores: Scores) -> tuple[Tensor, dict[str, Tensor]]:
        logits = scores.real_logits
        loss = (self._mismatch(logits[:, 0], logits[:, 1:], batch.negative_mask) * batch.negative_weights).mean()
        return self.config.weight * loss, {"Loss/D/mismatch": loss.detach()}
