"""The marks of generated pictures: what is written, what is found, and what a change of the file does to them."""

import datetime
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x448
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from PIL import Image

import gan_t2i
from gan_t2i.cli.main import command
from gan_t2i.core import marks
from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.core.images import save_picture
from gan_t2i.core.marks import Credentials, Marks, find_marks, sign

PICTURE = Image.radial_gradient("L").convert("RGB").resize((32, 32))
KEYS: dict[str, Callable[[], CertificateIssuerPrivateKeyTypes]] = {
    "es256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "es384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "ps256": lambda: rsa.generate_private_key(65537, 2048),
}


def pem_of(key: serialization.PrivateFormat | object) -> bytes:
    plain = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)  # type: ignore[attr-defined, no-any-return]


def certificate(subject: str, key: CertificateIssuerPrivateKeyTypes, issuer: str, issuer_key: CertificateIssuerPrivateKeyTypes) -> bytes:
    def name(common: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Tests"), x509.NameAttribute(NameOID.COMMON_NAME, common)])

    is_root, start = subject == issuer, datetime.datetime(2026, 1, 1)
    builder = x509.CertificateBuilder(name(issuer), name(subject), key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(start).not_valid_after(start + datetime.timedelta(days=36500))
    builder = builder.add_extension(x509.BasicConstraints(ca=is_root, path_length=None), critical=True)
    usages = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign", "encipher_only", "decipher_only"), False
    )
    builder = builder.add_extension(x509.KeyUsage(digital_signature=not is_root, key_cert_sign=is_root, **usages), critical=True)
    if not is_root:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=True)
        builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    digest = None if isinstance(issuer_key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(issuer_key, digest).public_bytes(serialization.Encoding.PEM)


@pytest.fixture(scope="module", params=KEYS)
def identity(request: pytest.FixtureRequest) -> tuple[bytes, bytes, bytes]:
    """Chain, private key and root of a signer."""
    return make_identity(request.param)


def make_identity(kind: str) -> tuple[bytes, bytes, bytes]:
    root_key, key = KEYS["es256"](), KEYS[kind]()
    root = certificate("Root", root_key, "Root", root_key)
    return certificate("Ada", key, "Root", root_key) + root, pem_of(key), root


@pytest.fixture(scope="module")
def es256() -> tuple[bytes, bytes, bytes]:
    return make_identity("es256")


@pytest.fixture(params=["png", "jpg", "webp"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"picture.{request.param}"
    save_picture(PICTURE, path, "abc")
    return path


def test_every_picture_says_that_a_model_made_it(file: Path) -> None:
    found = find_marks(file)
    assert found.source_type == "trainedAlgorithmicMedia"
    assert found.origin == ("abc" if file.suffix == ".png" else None)
    assert found.credentials is None


@pytest.mark.parametrize("suffix", ["avif", "tif", "gif", "bmp"])
def test_a_format_without_a_place_for_the_mark_gets_a_warning(suffix: str, tmp_path: Path, said: list[str]) -> None:
    path = tmp_path / f"picture.{suffix}"
    gan_t2i.save_picture(PICTURE, str(path))
    has_place = suffix in ("avif", "tif")
    assert (find_marks(path).source_type == "trainedAlgorithmicMedia") == has_place
    assert bool(said) == (not has_place)


def test_a_plain_picture_has_no_marks(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "plain.png")
    assert find_marks(tmp_path / "plain.png") == Marks(None, None, None, None)
    assert not find_marks(tmp_path / "plain.png")


def test_every_kind_of_key_signs(identity: tuple[bytes, bytes, bytes], tmp_path: Path) -> None:
    chain, key, root = identity
    save_picture(PICTURE, tmp_path / "a.png")
    sign(tmp_path / "a.png", chain, key)
    assert find_marks(tmp_path / "a.png").credentials == Credentials("Ada of Tests", False, None, ("trainedAlgorithmicMedia",))
    assert find_marks(tmp_path / "a.png", root.decode()).credentials == Credentials("Ada of Tests", True, None, ("trainedAlgorithmicMedia",))


def test_a_signed_picture_is_the_same_and_a_change_shows(es256: tuple[bytes, bytes, bytes], file: Path) -> None:
    chain, key, _ = es256
    before, size = find_marks(file), file.stat().st_size
    pixels = Image.open(file).tobytes()
    sign(file, chain, key)
    after = find_marks(file)
    assert replace(after, credentials=None) == before
    assert Image.open(file).tobytes() == pixels
    assert file.stat().st_size < size + 10_000  # no thumbnail
    change(file)
    changed = find_marks(file).credentials
    assert changed is not None
    assert changed.fault == "assertion.dataHash.mismatch"


def test_another_root_does_not_vouch(es256: tuple[bytes, bytes, bytes], file: Path) -> None:
    chain, key, _ = es256
    sign(file, chain, key)
    found = find_marks(file, make_identity("es256")[2].decode()).credentials
    assert found is not None
    assert not found.is_trusted
    assert found.fault is None


def test_refusals(es256: tuple[bytes, bytes, bytes], file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain, key, root = es256
    content = file.read_bytes()
    with pytest.raises(UsageError, match="the private key cannot be read"):
        sign(file, chain, b"nonsense")
    with pytest.raises(UsageError, match="the file of your certificate holds no certificate as PEM"):
        sign(file, b"nonsense", key)
    with pytest.raises(UsageError, match="neither an elliptic curve's"):
        sign(file, chain, pem_of(x448.X448PrivateKey.generate()))
    with pytest.raises((UsageError, GanT2IError), match=r"certificate and key cannot be used|cannot be signed"):
        sign(file, root, key)
    PICTURE.save(tmp_path / "a.gif")
    with pytest.raises(UsageError, match="is a GIF file: PNG, JPEG and WebP can be signed"):
        sign(tmp_path / "a.gif", chain, key)
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(GanT2IError, match="cannot be read as a picture"):
        sign(tmp_path / "text.png", chain, key)
    assert file.read_bytes() == content
    sign(file, chain, key)
    with pytest.raises(UsageError, match="is signed already, by Ada of Tests"):
        sign(file, chain, key)
    monkeypatch.setattr(marks, "has_c2pa", lambda: False)
    with pytest.raises(GanT2IError, match="signing needs the package c2pa-python"):
        sign(file, chain, key)


def change(file: Path) -> None:
    """Add a byte at the end of a PNG, whose parts have check sums, or change one in the XMP of another file."""
    content = file.read_bytes()
    file.write_bytes(content + b"x" if file.suffix == ".png" else content.replace(b"DigitalSourceType", b"digitalSourceType"))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(each) for each in arguments])


def test_the_commands(es256: tuple[bytes, bytes, bytes], file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("chain.pem", "key.pem", "root.pem")
    for name, content in zip(names, es256, strict=True):
        (tmp_path / name).write_bytes(content)
    chain, key, root = (tmp_path / name for name in names)
    assert run("verify", file).exit_code == 0
    assert run("sign", file, "--certificate", chain, "--key", key).output == f"signed: {file}\n"
    shown = run("verify", file)
    assert shown.exit_code == 0
    assert f"{file}: IPTC source type: trainedAlgorithmicMedia\n" in shown.output
    assert f"{file}: C2PA: signed by Ada of Tests: unchanged since, by a certificate that nobody vouches for here\n" in shown.output
    assert "unchanged since, trusted" in run("verify", file, "--trust", root).output
    unreadable = run("verify", file, "--trust", file)
    assert unreadable.exit_code == 2
    assert f"--trust {file}: it is not UTF-8 text" in unreadable.output.splitlines()[-1]
    change(file)
    broken = run("verify", file)
    assert broken.exit_code == 1
    assert ": signed by Ada of Tests: changed since (assertion.dataHash.mismatch)\n" in broken.output
    for content in (b"", b"text", es256[1]):
        (tmp_path / "trust.pem").write_bytes(content)
        refused = run("verify", file, "--trust", tmp_path / "trust.pem")
        assert refused.exit_code == 2
        assert refused.output.splitlines()[-1].endswith(f"--trust {tmp_path / 'trust.pem'} holds no certificate as PEM")
    PICTURE.save(tmp_path / "plain.png")
    monkeypatch.setattr(marks, "has_c2pa", lambda: False)
    (tmp_path / "text.png").write_text("text")
    several = run("verify", tmp_path / "text.png", tmp_path / "gone.png", file)
    assert several.exit_code == 1
    assert [f"{tmp_path / name} cannot be read as a picture" in several.stderr for name in ("text.png", "gone.png")] == [True, True]
    assert "gone.png cannot be read as a picture: No such file or directory\n" in several.stderr
    assert f"{file}: IPTC" in several.stdout
    assert run("verify", tmp_path / "plain.png").output.endswith('plain.png: no marks; C2PA was not looked for: pip install "gan-t2i[c2pa]"\n')
