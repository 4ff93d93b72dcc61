"""``gan-t2i data inspect``: statistics of pictures and captions, as text, JSON and a page."""
