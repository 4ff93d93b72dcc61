"""The page as a folder for any static host: the model draws in the browser, by onnxruntime-web, and nothing is sent anywhere.

Two packages of npm go into the folder, so that the page loads nothing from other hosts.
"""

import base64
import hashlib
import re
import shutil
import subprocess
import tarfile
import tempfile
from importlib import resources
from pathlib import Path

from gan_t2i.core.errors import GanT2IError
from gan_t2i.core.files import atomic_folder, cache_dir, check_new
from gan_t2i.sampling.onnx_export import export_onnx
from gan_t2i.sampling.pipeline import Text2Image

# package -> sha512 of its archive, and the files that the page needs
PACKAGES = {
    "onnxruntime-web@1.30.0": (
        "ab4cbe26baedba45d2cec05610c71c55fa97db92d19a8b171c5f8269126683ca590a5cdc57bb2f35ce2b298de32f4d956fb42644c0ecd528a0a91e025c07ca61",
        ("dist/ort.wasm.bundle.min.mjs", "dist/ort-wasm-simd-threaded.wasm"),
    ),
    "@huggingface/tokenizers@0.2.0": (
        "2e274c1ded45a5c4981f8bdc4a35e8a1d6b7e290b433c9b58260cebfb4908ba22ffa26f5cd7ec9dec1c1082f7fdc53c2927da4d5be79167795a8c471aebf7da6",
        ("dist/tokenizers.min.mjs", "LICENSE"),
    ),
}
# the archive of onnxruntime-web does not hold its licence
MIT = """\
onnxruntime-web is under the MIT License. Copyright (c) Microsoft Corporation.

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""


def export_web(model: Text2Image, folder: Path, *, name: str = "") -> None:
    """Write `model`, which must be on the CPU, and the page to a new folder; `name` is as for `export_onnx`.

    Raises `UsageError` where the folder exists, and `GanT2IError` where npm cannot get a package, or as `export_onnx`.
    """
    check_new(folder)
    vendor = packages()
    with atomic_folder(folder) as place:
        export_onnx(model, place / "model", name=name, packed=True)
        shutil.copytree(vendor, place / "vendor")
        (place / "engine.js").write_text(_resource("engine.js"), encoding="utf-8")
        size = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
        (place / "index.html").write_text(static_page(size), encoding="utf-8")


def static_page(size: int) -> str:
    """Return the page of the server with a script that answers its requests and loads `size` bytes, and a policy that allows no other host."""
    html = _resource("page.html")
    [script] = re.findall("<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'self' 'wasm-unsafe-eval' 'sha256-{digest}'; style-src 'unsafe-inline'; img-src blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'"
    )
    html = html.replace('<meta charset="utf-8">', f'<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" content="{policy}">', 1)
    return html.replace("<script>", f'<script src="engine.js" data-megabytes="{size / 1e6:.0f}"></script>\n<script>', 1)


def packages() -> Path:
    """Return a folder with the files of `PACKAGES`, from the cache, or else from npm; raises `GanT2IError` where npm fails."""
    folder = cache_dir() / "web" / hashlib.sha256(repr(PACKAGES).encode()).hexdigest()[:16]
    if folder.is_dir():
        return folder
    if (npm := shutil.which("npm")) is None:
        raise GanT2IError("the page for the web needs the command npm, which gets onnxruntime-web: install Node.js")
    with tempfile.TemporaryDirectory() as downloads, atomic_folder(folder) as place:
        for package, (sha512, files) in PACKAGES.items():
            done = subprocess.run([npm, "pack", "--silent", package], cwd=downloads, capture_output=True, text=True, check=False)
            archive = Path(downloads, (done.stdout.split() or ["none"])[-1])
            if done.returncode or not archive.is_file():
                reason = (done.stderr.strip().splitlines() or ["it says nothing"])[0]
                raise GanT2IError(f"npm cannot get {package}: {reason}")
            if hashlib.sha512(archive.read_bytes()).hexdigest() != sha512:
                raise GanT2IError(f"npm got another {package} than this version of gan_t2i was tested with")
            with tarfile.open(archive) as tar:
                for file in files:
                    name = "LICENSE-tokenizers" if file == "LICENSE" else Path(file).name
                    (place / name).write_bytes(_member(tar, f"package/{file}"))
        (place / "LICENSE-onnxruntime-web").write_text(MIT, encoding="utf-8")
    return folder


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    assert file is not None  # the archive has the hash that was tried
    return file.read()


def _resource(name: str) -> str:
    return (resources.files("gan_t2i.serving") / name).read_text(encoding="utf-8")
