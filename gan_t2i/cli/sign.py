"""``gan-t2i sign``: C2PA manifests for picture files."""

from pathlib import Path
from typing import BinaryIO

import click


@click.command("sign")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--certificate", type=click.File("rb"), required=True, help="Your certificate and those above it (PEM).")
@click.option("--key", type=click.File("rb"), required=True, help="Its private key (PEM, not encrypted).")
def command(files: tuple[Path, ...], certificate: BinaryIO, key: BinaryIO) -> None:
    """Sign pictures as made by a model (C2PA, in PNG, JPEG and WebP).

    The files are replaced by signed ones.
    """
    from gan_t2i.core.marks import sign

    certificates, private = certificate.read(), key.read()
    for path in files:
        sign(path, certificates, private)
        click.echo(f"signed: {path}")
