"""Limits of the server. Those of one request are the API's own and stand in `images_api`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds on time and memory; none grows with the number of clients."""

    pictures: int = 64
    """Pictures of all requests that wait, are drawn or are sent; a request for more than is left gets 429."""
    body: int = 512 * 1024
    """Bytes of a request's body: the longest prompt with every letter escaped fits."""
    upload: int = 8 * 1024 * 1024
    """The same for a request with a picture."""
    bodies: int = 64 * 1024 * 1024
    """Bytes of the bodies of all requests that are not answered yet; a request whose body does not fit gets 429."""
    upload_pixels: int = 16 * 1024 * 1024
    """Pixels of a picture that is sent; one at a time is decoded."""
    seconds: float = 120.0
    """Time of a request, from its headers to the end of its answer."""
    drain_seconds: int = 20
    """Time that the requests under way are given at SIGTERM."""
    prompts: int = 256
    """Encoded prompts that are kept in memory, the latest ones; 100 KB each."""
    shelf_bytes: int = 64 * 1024 * 1024
    """Memory for pictures that are fetched by URL; the oldest make way."""
    shelf_seconds: float = 600.0
    """Time until the URL of a picture expires."""
