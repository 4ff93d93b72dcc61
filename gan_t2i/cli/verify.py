"""``gan-t2i verify``: the marks in picture files."""

import logging
from pathlib import Path
from typing import TextIO

import click

from gan_t2i.cli.options import read_text

log = logging.getLogger(__name__)

_FAULTS = {"assertion.dataHash.mismatch": "changed since (assertion.dataHash.mismatch)"}


@click.command("verify")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--trust", type=click.File(encoding="utf-8"), help="Certificates (PEM) to trust as the roots of signatures.")
@click.pass_context
def command(ctx: click.Context, files: tuple[Path, ...], trust: TextIO | None) -> None:
    """Show the marks that say that a model made a picture.

    The origin identifies model, prompt, seed and truncation, and tells none of them. Exits with 1 where a file has no marks, cannot be read, or
    has a broken signature.
    """
    from gan_t2i.core.errors import GanT2IError
    from gan_t2i.core.marks import check_certificates, find_marks, has_c2pa

    anchors = ""
    if trust is not None:
        anchors = read_text(trust, "--trust")
        check_certificates(anchors.encode(), f"--trust {trust.name}")
    is_good = True
    for path in files:
        try:
            marks = find_marks(path, anchors)
        except GanT2IError as error:
            log.error(error)
            is_good = False
            continue
        for name, value in (("IPTC source type", marks.source_type), ("software", marks.software), ("origin", marks.origin)):
            if value:
                click.echo(f"{path}: {name}: {value}")
        if (found := marks.credentials) is not None:
            voucher = "trusted" if found.is_trusted else "by a certificate that nobody vouches for here"
            state = f"unchanged since, {voucher}" if found.fault is None else _FAULTS.get(found.fault, found.fault)
            click.echo(f"{path}: C2PA: signed by {found.signer}: {state}")
            for source_type in found.source_types:
                click.echo(f"{path}: C2PA: source type: {source_type}")
        if not marks:
            unread = "" if has_c2pa() else '; C2PA was not looked for: pip install "gan-t2i[c2pa]"'
            click.echo(f"{path}: no marks{unread}")
        is_good &= bool(marks) and (found is None or found.fault is None)
    if not is_good:
        ctx.exit(1)
