"""Names for picture files."""

import hashlib
from collections.abc import Sequence

from gan_t2i.core.files import slug


def file_names(prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """File names from prompt and seed, for every prompt with every seed, prompt by prompt; prompts that would share a name are numbered."""
    stems: list[str] = []
    for prompt in prompts:
        stem = slug(prompt)
        if stem == slug("") or len(slug(prompt, len(prompt))) > len(stem):  # nothing left, or cut: the digest keeps prompts apart
            stem += "-" + hashlib.blake2b(prompt.encode(), digest_size=3).hexdigest()
        number = sum(earlier == stem or earlier.startswith(f"{stem}.") for earlier in stems)
        stems.append(f"{stem}.{number + 1}" if number else stem)
    return [f"{stem}-seed{seed}.png" for stem in stems for seed in seeds]
