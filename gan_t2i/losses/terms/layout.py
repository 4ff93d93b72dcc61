"""Term `layout`: G's layout predictor is pretrained on the real pairs, before the run, to predict where captions put what they name.

It adds nothing to the loss: the frozen predictor biases G's attention, and so its local styles (`generator.params.layout`).
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from gan_t2i.losses.term import KIND, LossTerm, RunParts
from gan_t2i.pretraining import layout as pretraining
from gan_t2i.registry import register


@register(KIND, "layout")
class LayoutTerm(LossTerm):
    """Pretraining of the layout predictor of a generator that has one."""

    Config = pretraining.LayoutTraining
    config: pretraining.LayoutTraining

    @property
    def active(self) -> bool:
        return True

    def check(self, run: Any) -> None:
        if run.generator.params.get("layout"):
            run.data.require_packed("generator.params.layout")

    def prepare(self, run: RunParts, *, pretrained: bool = True) -> Mapping[str, nn.Module]:
        self._predictor = run.G.layout
        if run.G.layout is not None and run.G_ema.layout is not None and pretrained:
            pretraining.pretrained_layout(run.G.layout, self.config, run)
            run.G_ema.layout.load_state_dict(run.G.layout.state_dict())
        return {}

    @property
    def pretraining_kimg(self) -> float:
        return max(self.config.localizer_kimg, self.config.kimg) if self._predictor is not None else 0.0

    def pretrain(self, run: RunParts, share: float) -> None:
        assert run.G.layout is not None
        brief = self.config.model_copy(update={name: getattr(self.config, name) * share for name in ("localizer_kimg", "kimg")})
        pretraining.pretrain(run.G.layout, brief, run)
