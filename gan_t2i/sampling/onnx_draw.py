"""Draws pictures with the model in this folder:  python draw.py PROMPT --seed 3

It needs onnxruntime, tokenizers and numpy, and no torch. N batch, L tokens, Z latent width, C channels, R resolution.
"""

import argparse
import hashlib
import json
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

Array = np.ndarray[Any, Any]


class Model:
    """The model in `folder`: tokenizer, text encoder and generator."""

    def __init__(self, folder: Path) -> None:
        self.facts: dict[str, Any] = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.encoder, self.generator = (
            onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"]) for name in ("encoder.onnx", "generator.onnx")
        )

    def draw(self, prompts: Sequence[str], seeds: Sequence[int], truncation: float = 1.0, kept: int = 0) -> Array:
        """Return the images [N, C, R, R] of N prompts with a seed each, float32, about in [-1, 1].

        All rows have the features of the first row after each of the first `kept` blocks: with two rows, the second one has the shapes of
        the first prompt in the colours of its own. At 0, each row is drawn by itself.
        """
        rows = self.tokenizer.encode_batch(list(prompts))
        ids, mask = np.array([row.ids for row in rows]), np.array([row.attention_mask for row in rows], bool)  # [N, L]
        words, sentence = self.encoder.run(["words", "sentence"], {"ids": ids, "mask": mask})
        z = np.stack([latent(seed, self.facts["z_width"]) for seed in seeds])
        scalars = {"truncation": np.array(truncation, np.float32), "kept": np.array(kept, np.int64)}
        image: Array = self.generator.run(["image"], {"words": words, "mask": mask, "sentence": sentence, "z": z, **scalars})[0]
        return image


def latent(seed: int, width: int) -> Array:
    """Return z [Z], float32: the standard normal numbers that `gan-t2i sample` takes for a seed, which torch.randn draws, to its rounding."""
    digest = hashlib.blake2b(f"{seed}/z".encode(), digest_size=8).digest()
    twister = np.random.RandomState((int.from_bytes(digest, "little") >> 1) % 2**32)

    def uniform(count: int) -> Array:
        """Numbers of 24 bits in [0, 1), one of the twister's of 32 bits each."""
        return twister.randint(0, 2**32, count, np.uint32) % 2**24 / 2**24

    def normal(radius: Array, angle: Array) -> Array:
        """Box-Muller's transform of uniform numbers: cosines, then sines, along the last axis."""
        radius, angle = np.sqrt(-2 * np.log1p(-radius)), 2 * np.pi * angle
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)

    if width < 16:  # pairs, from numbers of 53 bits that are two of the twister's
        high, low = twister.randint(0, 2**32, (-(-width // 2), 2, 2), np.uint32).astype(np.uint64).transpose(2, 0, 1)
        angle, radius = ((high << np.uint64(32) | low) % 2**53 / 2**53).T[..., None]
        return normal(radius, angle).ravel()[:width].astype(np.float32)
    blocks = uniform(width)[: width // 16 * 16].reshape(-1, 16)  # eight radii, then eight angles
    z = np.empty(width)
    z[: blocks.size] = normal(blocks[:, :8], blocks[:, 8:]).ravel()
    if width % 16:  # the last sixteen are drawn anew
        last = uniform(16)
        z[-16:] = normal(last[:8], last[8:])
    return z.astype(np.float32)


def to_pixels(image: Array) -> Array:
    """Convert one image [C, R, R] to uint8 [R, R, C]: RGB, or RGBA, for which colours are divided by the alpha they were multiplied by."""
    levels = (image.clip(-1, 1).transpose(1, 2, 0) + 1) * 127.5
    if levels.shape[2] == 4:
        alpha = levels[..., 3:].round()
        colours = (levels[..., :3] * 255 / alpha.clip(min=1)).clip(max=255) * (alpha > 0)
        levels = np.concatenate([colours, alpha], axis=2)
    return levels.round().astype(np.uint8)


def save_png(pixels: Array, path: Path, xmp: str) -> None:
    """Write pixels [R, R, 3 or 4] with XMP metadata, which say that a model made the picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, {3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    parts = [(b"IHDR", header), (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp.encode()), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))


def main() -> None:
    """Draw one picture to a file."""
    parser = argparse.ArgumentParser(description="Draw a picture with the model in this folder.")
    parser.add_argument("prompt")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives another picture (default: 0)")
    parser.add_argument("--truncation", type=float, default=1.0, help="below 1, pictures are more typical and vary less (default: 1)")
    parser.add_argument("--out", type=Path, default=Path("picture.png"), help="a PNG file (default: picture.png)")
    options = parser.parse_args()
    for is_fault, message in (
        (not options.prompt.strip(), "the prompt is empty: say what to draw"),
        (not 0 <= options.seed < 10**18, "--seed must be from 0 to 10^18 - 1"),
        (not 0 <= options.truncation <= 2, "--truncation must be from 0 to 2"),
        (options.out.suffix.lower() != ".png", f"--out {options.out} must end in .png: it is a PNG file"),
    ):
        if is_fault:
            parser.error(message)
    model = Model(Path(__file__).parent)
    [image] = model.draw([options.prompt], [options.seed], options.truncation)
    try:
        save_png(to_pixels(image), options.out, model.facts["xmp"])
    except OSError as error:
        parser.error(f"cannot write {options.out}: {error.strerror}")
    print(options.out)


if __name__ == "__main__":
    main()
