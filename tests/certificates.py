"""Made certificates for content credentials: a root, and a leaf with the key usage that C2PA demands."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest

from stages.edit.credentials import FORMATS, Credentials

pytest.importorskip("c2pa", reason="the extra redub[sign] is not installed")
import c2pa
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

USAGES = [
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
    "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
]  # fmt: skip
EMAIL, SERVER = ExtendedKeyUsageOID.EMAIL_PROTECTION, ExtendedKeyUsageOID.SERVER_AUTH
PEM = serialization.Encoding.PEM
ROOT_KEY = ec.generate_private_key(ec.SECP256R1())


def make_credentials(
    folder: Path,
    *,
    days: tuple[int, int] = (-1, 30),
    purpose: x509.ObjectIdentifier = EMAIL,
    passphrase: bytes | None = None,
) -> Credentials:
    """A certificate valid between two days from now, its key, and beside them ``root.pem``."""
    folder.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    root = _make_certificate("A made root", ROOT_KEY, (-2, 40), "key_cert_sign", None)
    leaf = _make_certificate("A made signer", key, days, "digital_signature", purpose)
    chain, key_file = folder / "chain.pem", folder / "key.pem"
    chain.write_bytes(leaf.public_bytes(PEM) + root.public_bytes(PEM))
    (folder / "root.pem").write_bytes(root.public_bytes(PEM))
    cipher = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    key_file.write_bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, cipher))
    return Credentials(chain, key_file)


def _make_certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    days: tuple[int, int],
    usage: str,
    purpose: x509.ObjectIdentifier | None,
) -> x509.Certificate:
    """A certificate of the root's; without a purpose it is the root's own."""
    now = dt.datetime.now(dt.timezone.utc)
    usages = x509.KeyUsage(**{each: each == usage for each in USAGES})
    builder = (
        x509.CertificateBuilder()
        .subject_name(_make_name(name))
        .issuer_name(_make_name("A made root"))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + dt.timedelta(days=days[0]))
        .not_valid_after(now + dt.timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(ca=purpose is None, path_length=None), True)
        .add_extension(usages, True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ROOT_KEY.public_key()), False)
    )
    if purpose is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), True)
    return builder.sign(ROOT_KEY, hashes.SHA256())


def _make_name(name: str) -> x509.Name:
    names = {NameOID.COMMON_NAME: name, NameOID.ORGANIZATION_NAME: "redub's tests"}
    return x509.Name([x509.NameAttribute(key, value) for key, value in names.items()])


def read_manifests(path: Path, root: Path) -> tuple[str, list[dict[str, Any]]]:
    """The state of a file's content credentials by the library's own reader, and its manifests, newest first.

    ``root`` is the certificate that is trusted.
    """
    settings = {
        "trust": {"user_anchors": root.read_text()},
        "verify": {"ocsp_fetch": False, "remote_manifest_fetch": False},
    }
    context = c2pa.Context.from_dict(settings)
    with path.open("rb") as file, c2pa.Reader(FORMATS[path.suffix], file, context=context) as reader:
        report = json.loads(reader.json())
    newest = report["manifests"].pop(report["active_manifest"])
    return report["validation_state"], [newest, *report["manifests"].values()]
