"""HTML files that stand alone: pictures embedded, all text escaped, no scripts, no external resources."""

import base64
import html

# whatever a text contains, the page loads nothing and runs nothing
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = (
    "body{font:16px/1.4 sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222;background:#fff}"
    ".sheet{display:flex;flex-wrap:wrap;gap:1em}figure{margin:0;overflow-wrap:anywhere}h1,h2{overflow-wrap:anywhere}"
)


def html_page(title: str, body: str, style: str = "") -> str:
    """Return a page; `title` is text, `body` and the further `style` are HTML and CSS."""
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}"><title>{html.escape(title)}</title>'
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}<style>{_STYLE}{style}</style></head><body>\n'
        f"<h1>{html.escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def html_figure(file: bytes | str, caption: str, *, side: int, form: str = "png", alt: str | None = None) -> str:
    """Return a figure of a square picture, a `file` of that format shown with `side` pixels; a text in its place is shown as it is."""
    label = html.escape(caption)
    if isinstance(file, str):
        shown = html.escape(file)
    else:
        source = f"data:image/{form};base64,{base64.b64encode(file).decode()}"
        shown = f'<img width="{side}" height="{side}" alt="{label if alt is None else html.escape(alt)}" src="{source}">'
    return f'<figure style="width:{side}px">{shown}<figcaption>{label}</figcaption></figure>'
