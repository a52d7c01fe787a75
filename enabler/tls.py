"""TLS on the guest listener: the certificate and key that an admin gives, and gives anew."""

from __future__ import annotations

import ssl
from pathlib import Path

from enabler.errors import ConfigurationError


def context(certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    """Return what new connections are secured with: TLS 1.2 or later, HTTP/1.1.

    Raises `ConfigurationError` if the two can't be read, or are none, or no pair.
    """
    if certificate is None or key is None:
        raise ConfigurationError(
            "an https:// listener needs a certificate and its key; set tls_certificate and tls_key"
        )
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.set_alpn_protocols(["http/1.1"])
    for path in (certificate, key):
        try:
            path.open("rb").close()
        except OSError as error:
            raise ConfigurationError(f"{path} can't be read: {error.strerror}") from error
    try:
        made.load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error)
        raise ConfigurationError(
            f"{certificate} and {key} are no certificate and its key, as PEM without a password: "
            f"{reason}"
        ) from error
    return made


def _no_password() -> str:
    # Else OpenSSL asks for one on the terminal.
    raise ValueError("the key has a password")
