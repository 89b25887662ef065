"""Which broker, and how to speak to it: ``mqtt://user:password@host:port`` taken apart."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote, urlsplit

from kvflow.errors import EnvironmentProblemError
from kvflow.server.settings import ServiceSettings

__all__ = ["Broker", "broker_of"]

_PORTS: Final = {"mqtt": 1883, "mqtts": 8883}


@dataclass(frozen=True, slots=True)
class Broker:
    """One MQTT broker and the session the service has with it. The password is never shown.

    Attributes:
        session: the MQTT client id. The broker keeps messages for it while the service is away, so
            it stays the same over restarts, and no two services may have the same.
        timeout_s: longest wait for an answer of the broker.
        keepalive_s: after one and a half times this without a sign of life, the broker takes the
            service for dead and publishes its will.
    """

    host: str
    port: int
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    session: str = "kvflow-service"
    timeout_s: float = 5.0
    keepalive_s: int = 10

    @property
    def address(self) -> str:
        """For logs: without user and password."""
        scheme = "mqtt" if self.tls is None else "mqtts"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}"


def broker_of(settings: ServiceSettings) -> Broker:
    """The broker that the settings name.

    Raises:
        EnvironmentProblemError: a certificate cannot be read.
    """
    if settings.mqtt_url is None:
        raise ValueError("no broker is set")
    parts = urlsplit(settings.mqtt_url.get_secret_value())
    tls = parts.scheme == "mqtts"
    return Broker(
        host=parts.hostname or "",
        port=parts.port or _PORTS[parts.scheme],
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password is not None else None,
        tls=_tls_context(settings) if tls else None,
        session=settings.mqtt_session,
        keepalive_s=max(2, round(settings.lease_s)),
    )


def _tls_context(settings: ServiceSettings) -> ssl.SSLContext:
    """How to check the broker's certificate, and our own if the broker wants one."""
    ca, cert, key = settings.mqtt_ca, settings.mqtt_cert, settings.mqtt_key
    try:
        context = ssl.create_default_context(cafile=None if ca is None else str(ca))
        if cert is not None:
            context.load_cert_chain(cert, key)
    except OSError as error:  # SSLError is one
        named = ", ".join(str(path) for path in (ca, cert, key) if path is not None)
        raise EnvironmentProblemError(
            f"cannot take MQTT's certificates from {named}: {error.strerror or error}",
            "KVFLOW_MQTT_CA, KVFLOW_MQTT_CERT and KVFLOW_MQTT_KEY must name PEM files that the "
            "service may read",
        ) from error
    return context
