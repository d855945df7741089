"""Certificates made on the spot: a CA for each start of a peer, and pairs signed by it, as Fabric's tlsgen makes them.

Nothing is written to a file here.
"""

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

# Longer than any demo or test; the CA dies with its process.
_LIFETIME = timedelta(days=1)
# A certificate is good at once on a machine whose clock is a little behind.
_EARLIER = timedelta(minutes=5)


@dataclass(frozen=True)
class KeyPair:
    """A certificate and its private key, PEM."""

    certificate: bytes
    key: bytes


class CertificateAuthority:
    """Signs a server certificate for the peer and a client certificate for each launch."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "chaincode CA of this peer")])
        certificate = (
            _builder(self._name, self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.certificate = certificate.public_bytes(serialization.Encoding.PEM)

    def server_pair(self, host: str) -> KeyPair:
        """Return a pair for a server that is reached as `host`, an IP address or a name."""
        try:
            name: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            name = x509.DNSName(host)
        return self._pair(host, ExtendedKeyUsageOID.SERVER_AUTH, x509.SubjectAlternativeName([name]))

    def client_pair(self) -> KeyPair:
        """Return a pair for one launch of a chaincode."""
        return self._pair("chaincode", ExtendedKeyUsageOID.CLIENT_AUTH)

    def _pair(self, common_name: str, usage: x509.ObjectIdentifier, *extensions: x509.ExtensionType) -> KeyPair:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        builder = _builder(subject, self._name, key.public_key())
        for extension in (x509.ExtendedKeyUsage([usage]), *extensions):
            builder = builder.add_extension(extension, critical=False)
        return KeyPair(
            builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM),
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
        )


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(now + _LIFETIME)
    )


def fingerprint(certificate: bytes) -> bytes:
    """Return the SHA-256 of a PEM certificate's DER form."""
    return x509.load_pem_x509_certificate(certificate).fingerprint(hashes.SHA256())
