"""The networks. Importing this package registers every autoencoder, generator and discriminator."""

from gan_t2i.models.autoencoders import conv as conv
from gan_t2i.models.autoencoders import hub as hub
from gan_t2i.models.autoencoders import pixels as pixels
from gan_t2i.models.discriminators import plain as plain
from gan_t2i.models.discriminators import residual as residual
from gan_t2i.models.discriminators import transformer as transformer
from gan_t2i.models.generators import residual as residual_generator  # noqa: F401
from gan_t2i.models.generators import style as style
from gan_t2i.models.generators import transformer as transformer_generator  # noqa: F401
