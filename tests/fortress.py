"""A broker that takes TLS with client certificates only, and three ways to log in."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trustme
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from cryptography.hazmat.primitives import serialization
from secret_values import SECRET_WORD
from support import forwarding

from replay_app.demo.stack import EmbeddedServers, free_port

USER = "replay"
SECONDS = 30.0
_MODULES = "org.apache.kafka.common.security"


@dataclass
class Fortress:
    """The broker, and the files of a client that it trusts."""

    servers: EmbeddedServers
    """``servers.kafka`` is a listener without security, for the tests."""
    address: str
    """The listener with security."""
    folder: Path

    def login(self, mechanism: str, prefix: str = "KAFKA") -> dict[str, str]:
        """Return the settings with which a worker logs in; ``prefix``: of which cluster."""
        options = {
            "": self.address,
            "_SECURITY_PROTOCOL": "SASL_SSL",
            "_SASL_MECHANISM": mechanism,
            "_SSL_CAFILE": str(self.folder / "ca.pem"),
            "_SSL_CERTFILE": str(self.folder / "client.pem"),
            "_SSL_KEYFILE": str(self.folder / "client.pem"),
        }
        if mechanism == "OAUTHBEARER":
            options["_SASL_OAUTH_COMMAND"] = f"cat {self.folder / 'token'}"
        else:
            options |= {"_SASL_PLAIN_USERNAME": USER, "_SASL_PLAIN_PASSWORD": SECRET_WORD}
        return {f"REPLAY_{prefix}{name}": value for name, value in options.items()}

    def write_token(self, seconds: float = 3600.0) -> None:
        """Write a token that expires in some seconds. The broker checks no signature."""
        now = int(time.time())
        parts: list[dict[str, object]] = [
            {"alg": "none"},
            {"sub": USER, "iat": now - 60, "exp": now + seconds},
        ]
        encoded = (base64.urlsafe_b64encode(json.dumps(one).encode()) for one in parts)
        token = b".".join([*(one.rstrip(b"=") for one in encoded), b""])
        (self.folder / "token").write_bytes(token)


@contextmanager
def fortress(folder: Path) -> Iterator[Fortress]:
    """Start the broker, with a store beside it."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    for name in ("server", "client"):
        _write_certificate(authority.issue_cert("127.0.0.1"), folder / f"{name}.pem")
    port = free_port()
    listener = "listener.name.proxied"
    with (
        EmbeddedServers(
            proxy_port=port,
            broker_settings={
                "listener.security.protocol.map": (
                    "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:SASL_SSL"
                ),
                f"{listener}.ssl.keystore.type": "PEM",
                f"{listener}.ssl.keystore.location": str(folder / "server.pem"),
                f"{listener}.ssl.truststore.type": "PEM",
                f"{listener}.ssl.truststore.location": str(folder / "ca.pem"),
                f"{listener}.ssl.client.auth": "required",
                f"{listener}.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512,OAUTHBEARER",
                f"{listener}.plain.sasl.jaas.config": (
                    f'{_MODULES}.plain.PlainLoginModule required user_{USER}="{SECRET_WORD}";'
                ),
                f"{listener}.scram-sha-512.sasl.jaas.config": (
                    f"{_MODULES}.scram.ScramLoginModule required;"
                ),
                f"{listener}.oauthbearer.sasl.jaas.config": (
                    f"{_MODULES}.oauthbearer.OAuthBearerLoginModule required "
                    'unsecuredLoginStringClaim_sub="broker";'
                ),
            },
        ) as servers,
        forwarding(port, servers.behind_proxy),
    ):
        admin = AdminClient({"bootstrap.servers": servers.kafka, "log_level": 0})
        user = UserScramCredentialUpsertion(
            USER,
            ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096),
            SECRET_WORD.encode(),
        )
        for done in admin.alter_user_scram_credentials([user]).values():
            done.result(SECONDS)
        started = Fortress(servers, f"127.0.0.1:{port}", folder)
        started.write_token()
        yield started


def _write_certificate(made: trustme.LeafCert, path: Path) -> None:
    # Kafka takes PKCS #8 only.
    key = serialization.load_pem_private_key(made.private_key_pem.bytes(), password=None)
    text = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path.write_bytes(text + b"".join(one.bytes() for one in made.cert_chain_pems))
