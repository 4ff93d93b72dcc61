"""A generator of latents and its autoencoder, as one generator of images."""

from torch import Tensor

from gan_t2i.models.autoencoders.base import Autoencoder
from gan_t2i.models.base import Generator
from gan_t2i.text.batch import TextBatch


class LatentGenerator(Generator):
    """Draws latents with `G` and decodes them: everything after training sees images alone."""

    def __init__(self, G: Generator, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.G, self.autoencoder = G, autoencoder
        self.resolution = G.resolution * autoencoder.factor
        self.z_width = G.z_width

    def forward(self, z: Tensor, text: TextBatch, truncation_psi: float = 1.0) -> Tensor:
        return self.autoencoder.decode(self.G(z, text, truncation_psi))
