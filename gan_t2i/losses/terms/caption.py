"""Term `caption`: a captioner, pretrained on the real pairs and then frozen, must recover the prompt from the generated image.

The idea is the re-description of MirrorGAN (Qiao et al. 2019, arXiv 1903.05854).
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from gan_t2i.core.config import NonNegative
from gan_t2i.core.images import composite
from gan_t2i.core.phases import phase
from gan_t2i.core.runtime import autocast
from gan_t2i.losses.inputs import Draws, MicroBatch, Scores
from gan_t2i.losses.term import KIND, LossTerm, RunParts
from gan_t2i.models.captioner import PAD
from gan_t2i.ops.resample import avg_pool_to
from gan_t2i.pretraining import captioner as pretraining
from gan_t2i.registry import register


@register(KIND, "caption")
class CaptionTerm(LossTerm):
    """Mean negative log-likelihood per token of the prompt given the generated image, in nats.

    The images get the noise that the captioner was pretrained with: without it, G finds fine patterns that please the captioner alone.
    """

    class Config(pretraining.CaptionerTraining):
        """Settings of the captioner and of the term."""

        weight: NonNegative = 0.0
        """Factor of the term in G's loss; 0: there is no captioner."""

    config: Config

    def check(self, run: Any) -> None:
        if self.active:
            run.data.require_packed("terms.caption")

    def prepare(self, run: RunParts, *, pretrained: bool = True) -> Mapping[str, nn.Module]:
        self._device, self._precision, self._in_pixels = run.device, run.precision, run.autoencoder.is_identity
        build = pretraining.pretrained_captioner if pretrained else pretraining.build_captioner
        self.captioner = build(self.config, run)
        self._tokens = self.captioner.tokenize(run.dataset.captions)  # [captions, L]
        self._seen = (3 if self._in_pixels else run.autoencoder.latent_channels, self.captioner.side, self.captioner.side)
        return {"captioner": self.captioner}

    @property
    def pretraining_kimg(self) -> float:
        return self.config.kimg if self.active else 0.0

    def pretrain(self, run: RunParts, share: float) -> None:
        brief = self.config.model_copy(update={"kimg": self.config.kimg * share})
        pretraining.pretrain(self.captioner, brief, run)

    def draw(self, draws: Draws) -> Mapping[str, Tensor]:
        tokens = self._tokens[draws.captions]
        if not draws.static:
            tokens = tokens[:, : int((tokens != PAD).sum(dim=1).max())]
        return {"caption/tokens": tokens, "caption/noise": draws.uneven(self.config.noise, self._seen)}

    @phase("captioner")
    def generator_loss(self, batch: MicroBatch, scores: Scores) -> tuple[Tensor, dict[str, Tensor]]:
        images = composite(scores.fake, batch.noise.background) if self._in_pixels else scores.fake
        images = avg_pool_to(images, self.captioner.side)
        with autocast(self._device, self._precision):
            loss = -self.captioner(images + batch.drawn["caption/noise"], batch.drawn["caption/tokens"]).mean()
        return self.config.weight * loss, {"Loss/G/caption": loss.detach()}
