"""The report of `gan-t2i data inspect` as a single HTML file: pictures embedded, all text escaped, no scripts, no external resources."""

import base64
import html
import io
from collections.abc import Sequence

from PIL import Image

from gan_t2i.data.decode import BadImageError, load_image
from gan_t2i.data.inspect.report import Inspection
from gan_t2i.data.records import Record
from gan_t2i.data.settings import DataSettings

_SIDE = 128  # pixels of an example
_SHOWN_CAPTIONS = 3
# whatever a caption contains, the page loads nothing and runs nothing
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = (
    "body{font:16px/1.4 sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222;background:#fff}"
    "th{text-align:left;vertical-align:top;padding:.3em 1em .3em 0;width:12em}td{padding:.3em 0;overflow-wrap:anywhere}"
    "tr{border-bottom:1px solid #ddd}table{border-collapse:collapse;width:100%}small{color:#555;display:block}"
    ".sheet{display:flex;flex-wrap:wrap;gap:1em}figure{margin:0;width:128px;overflow-wrap:anywhere}pre{overflow-x:auto;background:#f4f4f4;padding:1em}"
)


def page(inspection: Inspection, settings: DataSettings, recommended: str) -> str:
    """Return the page; `recommended` is the recommended config for the data, as YAML."""
    rows = "\n".join(_row(title, first, rest) for title, first, rest in inspection.sections())
    sheet = "\n".join(_figure(record, settings) for record in inspection.examples)
    title = f"Data set {html.escape(inspection.source)}"
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body>\n<h1>{title}</h1>\n<table>\n{rows}\n</table>\n"
        f'<h2>Examples</h2>\n<div class="sheet">\n{sheet}\n</div>\n'
        f"<h2>Recommended config</h2>\n<pre>{html.escape(recommended)}</pre>\n</body></html>\n"
    )


def _row(title: str, first: str, rest: Sequence[str]) -> str:
    lines = "".join(f"<small>{html.escape(line)}</small>" for line in rest)
    return f'<tr><th scope="row">{html.escape(title)}</th><td>{html.escape(first)}{lines}</td></tr>'


def _figure(record: Record, settings: DataSettings) -> str:
    captions = html.escape(" / ".join(record.captions[:_SHOWN_CAPTIONS]))
    try:
        pixels = load_image(record.image, _SIDE, settings.model_copy(update={"alpha": False}))  # a JPEG has none
    except BadImageError as error:  # the file has changed since the inspection
        return f"<figure>{html.escape(str(error))}<figcaption>{captions}</figcaption></figure>"
    file = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(file, "JPEG", quality=85)
    data = base64.b64encode(file.getvalue()).decode()
    picture = f'<img width="{_SIDE}" height="{_SIDE}" alt="{captions}" src="data:image/jpeg;base64,{data}">'
    return f"<figure>{picture}<figcaption>{captions}</figcaption></figure>"
