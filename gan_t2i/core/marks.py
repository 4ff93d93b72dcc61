"""Marks in picture files that say that a model made the picture.

There are three: the IPTC digital source type in XMP, which `images.py` writes always; the names that a PNG of gan_t2i has; and a C2PA manifest
(Content Credentials), signed with a certificate of the user's. Only the last one shows whether the file was changed.
"""

import contextlib
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from gan_t2i import __version__
from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.core.files import output_file

if TYPE_CHECKING:
    from c2pa import Context, Signer

SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
GENERATED = SOURCE_TYPES + "trainedAlgorithmicMedia"
"""IPTC's term for pictures made by a trained model."""
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    f'Iptc4xmpExt:DigitalSourceType="{GENERATED}"/></rdf:RDF></x:xmpmeta>'
)
ORIGIN = "gan_t2i"
"""Key in a PNG."""
FORMATS = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
"""Formats of Pillow that can be signed, and their media types."""
_EXTRA = 'pip install "gan-t2i[c2pa]"'
# nothing is fetched, and no thumbnail of the picture is added to it
_SETTINGS = {"builder": {"thumbnail": {"enabled": False}}, "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}


@dataclass(frozen=True)
class Credentials:
    """A C2PA manifest in a file."""

    signer: str
    """Name in the certificate, which anybody may have written where it is not trusted."""
    is_trusted: bool
    """True if the certificate leads to one of the anchors that were given."""
    fault: str | None
    """Code of what is wrong, such as ``assertion.dataHash.mismatch`` for a picture that was changed after it was signed; None if nothing is."""
    source_types: tuple[str, ...]
    """IPTC digital source types in the manifest."""


@dataclass(frozen=True)
class Marks:
    """The marks that a file has."""

    source_type: str | None
    """IPTC digital source type in its XMP."""
    software: str | None
    """Software that a PNG names."""
    origin: str | None
    """Identifier of model, prompt, seed and truncation in a PNG of gan_t2i, which tells none of them."""
    credentials: Credentials | None
    """None where there is no C2PA manifest, or where c2pa-python is not installed."""

    def __bool__(self) -> bool:
        return any((self.source_type, self.origin, self.credentials))


def has_c2pa() -> bool:
    """Return True if C2PA manifests can be read and written here."""
    try:
        import c2pa  # noqa: F401
    except ImportError:
        return False
    return True


def find_marks(path: Path, anchors: str = "") -> Marks:
    """Return the marks of the picture at `path`; raises `GanT2IError` for a file that is no picture.

    `anchors`: certificates to trust, as PEM. Nothing is fetched from the network.
    """
    try:
        with Image.open(path) as picture:
            form, info = picture.format, picture.info
    except Exception as error:  # Pillow has many readers, and each raises what it likes
        raise GanT2IError(f"{path} cannot be read as a picture: {getattr(error, 'strerror', None) or ' '.join(str(error).split())}") from error
    xmp = info.get("XML:com.adobe.xmp") or info.get("xmp") or ""
    text = xmp.decode(errors="replace") if isinstance(xmp, bytes) else str(xmp)
    found = re.search(re.escape(SOURCE_TYPES) + r"(\w+)", text)
    credentials = _read_credentials(path, FORMATS[form], anchors) if form in FORMATS and has_c2pa() else None
    return Marks(found[1] if found else None, info.get("Software") if form == "PNG" else None, info.get(ORIGIN), credentials)


def sign(path: Path, certificates: bytes, key: bytes) -> None:
    """Add a C2PA manifest to the PNG, JPEG or WebP file at `path`: a model made the picture, and who signs it.

    `certificates` is the chain from the signer's on and `key` its private key, both PEM. Raises `UsageError` where one cannot be used, and
    `GanT2IError` for a file that cannot be signed.
    """
    if not has_c2pa():
        raise GanT2IError(f"signing needs the package c2pa-python: {_EXTRA}")
    import c2pa

    check_certificates(certificates, "the file of your certificate")
    marks, file = find_marks(path), path.read_bytes()
    if marks.credentials is not None:
        raise UsageError(f"{path} is signed already, by {marks.credentials.signer}")
    with Image.open(io.BytesIO(file)) as picture:
        form = picture.format
    if form not in FORMATS:
        raise UsageError(f"{path} is a {form} file: PNG, JPEG and WebP can be signed")
    action = {"action": "c2pa.created", "digitalSourceType": GENERATED}
    manifest = {
        "claim_generator_info": [{"name": "gan_t2i", "version": __version__}],
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [action]}}],
    }
    signed = io.BytesIO()
    with _context() as context, _signer(certificates, key) as signer, c2pa.Builder(manifest, context) as builder:
        try:
            builder.sign(signer, FORMATS[form], io.BytesIO(file), signed)
        except c2pa.C2paError as error:
            raise GanT2IError(f"{path} cannot be signed: {error}") from error
    with output_file(path) as temporary:
        temporary.write_bytes(signed.getvalue())


def check_certificates(pem: bytes, name: str) -> None:
    """Raise `UsageError` for the file called `name` where `pem` holds no certificate; without c2pa-python, it is not looked at."""
    if not has_c2pa():
        return
    from cryptography.x509 import load_pem_x509_certificates

    try:
        load_pem_x509_certificates(pem)
    except ValueError as error:
        raise UsageError(f"{name} holds no certificate as PEM") from error


def _read_credentials(path: Path, media_type: str, anchors: str) -> Credentials | None:
    import c2pa

    with _context(anchors) as context, path.open("rb") as file:
        try:
            with c2pa.Reader(media_type, file, context=context) as reader:
                report = json.loads(reader.json())
        except c2pa.C2paError as error:
            if "ManifestNotFound" in str(error):
                return None
            return Credentials("unknown", is_trusted=False, fault=f"unreadable ({error})", source_types=())
    manifest = report["manifests"][report["active_manifest"]]
    by = manifest.get("signature_info", {})
    codes = [entry["code"] for entry in report.get("validation_status", [])]
    untrusted = "signingCredential.untrusted"
    names = [by[name] for name in ("common_name", "issuer") if by.get(name)]
    return Credentials(
        " of ".join(names) or "unknown",
        is_trusted=bool(anchors) and untrusted not in codes,
        fault=next((code for code in codes if code != untrusted), None),
        source_types=tuple(dict.fromkeys(re.findall(re.escape(SOURCE_TYPES) + r"(\w+)", json.dumps(manifest.get("assertions", []))))),
    )


@contextlib.contextmanager
def _context(anchors: str = "") -> "Iterator[Context]":
    import c2pa

    trust: dict[str, Any] = {"trust": {"trust_anchors": anchors}} if anchors else {}
    with c2pa.Settings.from_dict({**_SETTINGS, **trust}) as settings, c2pa.Context(settings) as context:
        yield context


@contextlib.contextmanager
def _signer(certificates: bytes, key: bytes) -> "Iterator[Signer]":
    import c2pa

    try:
        with c2pa.Signer.from_info(c2pa.C2paSignerInfo(_algorithm(key), certificates, key, None)) as signer:
            yield signer
    except c2pa.C2paError as error:
        raise UsageError(f"certificate and key cannot be used: {error}") from error


def _algorithm(key: bytes) -> bytes:
    """Return the name of the signing algorithm that belongs to a private key."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        private = load_pem_private_key(key, None)
    except (TypeError, ValueError) as error:
        reason = str(error).partition(". ")[0]
        raise UsageError(f"the private key cannot be read: {reason}; give an unencrypted key as PEM") from error
    if isinstance(private, ec.EllipticCurvePrivateKey):
        return {"secp256r1": b"es256", "secp384r1": b"es384", "secp521r1": b"es512"}.get(private.curve.name, b"es256")
    if isinstance(private, ed25519.Ed25519PrivateKey):
        return b"ed25519"
    if isinstance(private, rsa.RSAPrivateKey):
        return b"ps256"
    raise UsageError("the private key is neither an elliptic curve's, nor Ed25519's, nor RSA's")
