"""The report of `gan-t2i data inspect` as a single HTML file."""

import html
import io
from collections.abc import Sequence

from PIL import Image

from gan_t2i.core.html_page import html_figure, html_page
from gan_t2i.data.decode import BadImageError, load_image
from gan_t2i.data.inspect.report import Inspection
from gan_t2i.data.records import Record
from gan_t2i.data.settings import DataSettings

_SIDE = 128  # pixels of an example
_SHOWN_CAPTIONS = 3
_STYLE = (
    "th{text-align:left;vertical-align:top;padding:.3em 1em .3em 0;width:12em}td{padding:.3em 0;overflow-wrap:anywhere}"
    "tr{border-bottom:1px solid #ddd}table{border-collapse:collapse;width:100%}small{color:#555;display:block}"
    "pre{overflow-x:auto;background:#f4f4f4;padding:1em}"
)


def page(inspection: Inspection, recommended: str) -> str:
    """Return the page; `recommended` is the recommended config for the data, as YAML."""
    rows = "\n".join(_row(title, first, rest) for title, first, rest in inspection.sections())
    sheet = "\n".join(_figure(record, inspection.settings) for record in inspection.examples)
    body = (
        f'<table>\n{rows}\n</table>\n<h2>Examples</h2>\n<div class="sheet">\n{sheet}\n</div>\n'
        f"<h2>Recommended config</h2>\n<pre>{html.escape(recommended)}</pre>"
    )
    return html_page(f"Data set {inspection.source}", body, _STYLE)


def _row(title: str, first: str, rest: Sequence[str]) -> str:
    lines = "".join(f"<small>{html.escape(line)}</small>" for line in rest)
    return f'<tr><th scope="row">{html.escape(title)}</th><td>{html.escape(first)}{lines}</td></tr>'


def _figure(record: Record, settings: DataSettings) -> str:
    captions = " / ".join(record.captions[:_SHOWN_CAPTIONS])
    try:
        pixels = load_image(record.image, _SIDE, settings.model_copy(update={"alpha": False}))  # a JPEG has none
    except BadImageError as error:  # the file has changed since the inspection
        return html_figure(str(error), captions, side=_SIDE)
    file = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(file, "JPEG", quality=85)
    return html_figure(file.getvalue(), captions, side=_SIDE, form="jpeg")
