"""Credentials of a federation: the server's certificate, and a key for each node.

    FOLDER/server/    certificate.pem, key.pem, and nodes/ID.pub of each node that may join
    FOLDER/ID/        certificate.pem of the server, and the node's own key.pem

Nothing but the folder of a node goes to that node, and no other folder holds its key.
"""

from __future__ import annotations

import dataclasses
import datetime
import ipaddress
import os
import pathlib
from collections.abc import Sequence

from tff_kit.errors import UserError

_DAYS = 3650
_LOOPBACK = ("localhost", "127.0.0.1")


class CredentialError(UserError):
    """A credential that is missing, or can't be made. The message says why, and what can be done."""


@dataclasses.dataclass(frozen=True)
class _Credential:
    """The files that both kinds of credential have in their folder."""

    folder: pathlib.Path

    @property
    def certificate(self) -> pathlib.Path:
        return self.folder / "certificate.pem"

    @property
    def key(self) -> pathlib.Path:
        return self.folder / "key.pem"


@dataclasses.dataclass(frozen=True)
class ServerCredential(_Credential):
    """A server's credential in a folder; raises `CredentialError` where it is none."""

    def __post_init__(self):
        _check(self.folder, "a server's", (self.certificate, self.key))

    @property
    def nodes(self) -> dict[str, bytes]:
        """The public key of each node that may join, by the node's id."""
        return {path.stem: path.read_bytes() for path in sorted((self.folder / "nodes").glob("*.pub"))}


@dataclasses.dataclass(frozen=True)
class NodeCredential(_Credential):
    """A node's credential in a folder; raises `CredentialError` where it is none."""

    def __post_init__(self):
        _check(self.folder, "a node's", (self.certificate, self.key))
        if (self.folder / "nodes").exists():
            raise CredentialError(f"Expected a node's credential in {self.folder}, found the server's, which is for serve alone.")


def _check(folder: pathlib.Path, whose: str, files: Sequence[pathlib.Path]) -> None:
    for path in files:
        if not path.is_file():
            raise CredentialError(
                f"Expected {whose} credential in {folder}, found no {path.name} there. "
                "Make credentials with python -m tff_kit credential FOLDER --hosts HOST --nodes ID ..."
            )


def make(folder: pathlib.Path, hosts: Sequence[str], nodes: Sequence[str]) -> None:
    """Makes the server's credential in `folder`, unless it is there, and that of each node.

    Args:
      folder: Where; made if it does not exist.
      hosts: Names and addresses by which nodes reach the server.
      nodes: Ids of new nodes.

    Raises:
      CredentialError: If a node's credential is there already, or an id can't be a folder's name.
    """
    for node in nodes:
        if node == "server" or node != pathlib.Path(node).name or (folder / node).exists():
            raise CredentialError(f"Expected the id of a new node, found {node!r}, which is taken or can't be a folder's name.")
    if not (folder / "server").exists():
        _make_server(folder / "server", hosts)
    certificate = ServerCredential(folder / "server").certificate.read_bytes()
    for node in nodes:
        _make_node(folder, node, certificate)


def _make_server(folder: pathlib.Path, hosts: Sequence[str]) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tff-kit")])
    now = datetime.datetime.now(datetime.timezone.utc)
    alternatives = [_alternative_name(host) for host in dict.fromkeys([*hosts, *_LOOPBACK])]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # Devices' clocks differ.
        .not_valid_after(now + datetime.timedelta(days=_DAYS))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "nodes").mkdir(parents=True)
    _write_private(folder / "key.pem", _pem(key, serialization.PrivateFormat.PKCS8))
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def _make_node(folder: pathlib.Path, node: str, certificate: bytes) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP384R1())
    (folder / node).mkdir()
    _write_private(folder / node / "key.pem", _pem(key, serialization.PrivateFormat.OpenSSH))
    (folder / node / "certificate.pem").write_bytes(certificate)
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / "server" / "nodes" / f"{node}.pub").write_bytes(public)


def _alternative_name(host: str):
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(key, form) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _write_private(path: pathlib.Path, content: bytes) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
