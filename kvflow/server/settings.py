"""The service's settings: one frozen object, read once, passed explicitly."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from kvflow.protocol import DEFAULT_LEASE_S, HEARTBEATS_PER_LEASE, Identifier
from kvflow.server.logs import LogFormat
from kvflow.server.mqtt_url import check_mqtt_url
from kvflow.server.store.place import check_database, masked

__all__ = ["ServiceSettings", "is_loopback"]

DEFAULT_PORT: Final = 8100
_KUBERNETES_SERVICE_LINK: Final = re.compile(r"^(tcp|udp|sctp)://")
_BEARER_TOKEN: Final = re.compile(r"^[\x21-\x7e]+$")

_ALWAYS_SAID: Final = ("host", "port", "database")

PerSecond = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
MqttPrefix = Annotated[
    str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*$")
]
PositiveSeconds = Annotated[float, Field(gt=0, le=24 * 3600, allow_inf_nan=False)]


class ServiceSettings(BaseSettings):
    """What ``kvflow serve`` can be told, by argument or by ``KVFLOW_<NAME>`` in the environment.

    Raises ``pydantic.ValidationError``, which names every wrong setting.
    """

    model_config = SettingsConfigDict(
        env_prefix="KVFLOW_", frozen=True, extra="ignore", env_ignore_empty=True
    )

    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=DEFAULT_PORT, ge=0, le=65535, description="0: any free port.")
    api_key: SecretStr | None = Field(
        default=None, description="If set, requests need 'Authorization: Bearer <key>'."
    )
    keys_file: Path | None = Field(
        default=None, description="File of the API keys that `kvflow keys` makes."
    )
    allow_open: bool = Field(
        default=False, description="Listen beyond loopback although there is no API key."
    )
    public_metrics: bool = Field(
        default=False,
        description="Serve /metrics without the API key.",
    )
    lease_s: PositiveSeconds = Field(
        default=DEFAULT_LEASE_S,
        description="An engine that hears nothing for this long is on its own; "
        "an idle stream carries a heartbeat three times in it.",
    )
    sweep_interval_s: PositiveSeconds = Field(
        default=1.0, description="How often expired workflows are looked for."
    )
    shutdown_timeout_s: PositiveSeconds = Field(
        default=5.0, description="How long a shutdown waits for requests that are being answered."
    )
    max_body_bytes: int = Field(
        default=8 * 1024 * 1024, ge=1024, description="Longest request body that is read."
    )
    max_head_bytes: int = Field(
        default=32 * 1024,
        ge=1024,
        le=64 * 1024,
        description="Longest address and headers of a request.",
    )
    client_requests_per_s: PerSecond | None = Field(
        default=1_000.0, description="Requests of a client with a key; twice as many at once."
    )
    client_events_per_s: PerSecond | None = Field(
        default=50_000.0, description="Step events of a client with a key; twice as many at once."
    )
    client_max_workflows: int | None = Field(
        default=10_000, ge=0, description="Live workflows of a client with a key."
    )
    max_workflows: int = Field(
        default=100_000, ge=1, description="Live workflows held at once; creating more is refused."
    )
    max_event_readers: int = Field(
        default=256, ge=0, description="Readers of /v1/events at once; more are refused."
    )
    engine_url: str | None = Field(
        default=None, description="Engine that the OpenAI routes pass calls to."
    )
    engine_api_key: SecretStr | None = Field(default=None, description="The engine's own API key.")
    engine_kind: Literal["auto", "kvflow", "sglang", "vllm"] = Field(
        default="auto",
        description="What the engine is; kvflow is SGLang with the plugin. auto: it is asked.",
    )
    engine_priority: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="Whether the engine schedules by priority. auto: SGLang is asked, others "
        "are taken not to.",
    )
    engine_timeout_s: PositiveSeconds = Field(
        default=600.0, description="A call is given up when the engine says nothing for this long."
    )
    hint_max_ttl_s: PositiveSeconds = Field(
        default=600.0, description="Longest time that a KV hint may last."
    )
    database: str | None = Field(
        default=None,
        description="Where workflows are kept: a file, 'none' for in memory, or the address of a "
        "Valkey server.",
    )
    record: Path | None = Field(
        default=None, description="File to append workflows and events to, for a replay."
    )
    tls_cert: Path | None = Field(
        default=None, description="Certificate chain (PEM); the service then speaks HTTPS only."
    )
    tls_key: Path | None = Field(
        default=None, description="Its private key (PEM), if it is not in the same file."
    )
    mqtt_url: SecretStr | None = Field(
        default=None, description="MQTT broker: mqtt://host:1883, mqtts://user:password@host:8883."
    )
    mqtt_ca: Path | None = Field(
        default=None, description="Certificate authority (PEM) of the broker, if not a public one."
    )
    mqtt_cert: Path | None = Field(
        default=None, description="The service's own certificate (PEM), if the broker wants one."
    )
    mqtt_key: Path | None = Field(
        default=None, description="Its private key (PEM), if it is not in the same file."
    )
    mqtt_prefix: MqttPrefix = Field(
        default="kvflow/v1", description="What all MQTT topics begin with."
    )
    mqtt_session: Identifier = Field(
        default="kvflow-service",
        description="MQTT client id; services on one broker must not share it.",
    )
    mqtt_reorder_wait_s: PositiveSeconds = Field(
        default=2.0, description="How long a message that came too early waits for its turn."
    )
    otel: bool = Field(default=False, description="Send OpenTelemetry spans over OTLP/HTTP.")
    log_format: LogFormat = Field(default="text", description="json: an object a line.")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    access_log: bool = Field(default=False, description="Log a line for every request.")

    @field_validator("port", mode="before")
    @classmethod
    def _ignore_kubernetes_service_link(cls, value: object) -> object:
        # Kubernetes gives every pod KVFLOW_PORT=tcp://<ip>:<port> if a Service is named "kvflow".
        if isinstance(value, str) and _KUBERNETES_SERVICE_LINK.match(value):
            return DEFAULT_PORT
        return value

    @field_validator("mqtt_url")
    @classmethod
    def _names_a_broker(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            check_mqtt_url(value.get_secret_value())
        return value

    @field_validator("database")
    @classmethod
    def _is_a_place(cls, value: str | None) -> str | None:
        return None if value is None else check_database(value)

    @field_validator("engine_url")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        if value is not None:
            parts = urlsplit(value)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError("must be an address such as http://127.0.0.1:30000")
            if parts.username is not None or parts.password is not None:
                raise ValueError("must hold no password; KVFLOW_ENGINE_API_KEY is for a key")
        return value

    @field_validator("api_key", "engine_api_key")
    @classmethod
    def _fits_a_header(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not _BEARER_TOKEN.match(value.get_secret_value()):
            raise ValueError("must be one or more printable ASCII characters without spaces")
        return value

    @model_validator(mode="after")
    def _open_only_on_loopback(self) -> ServiceSettings:
        has_key = self.api_key is not None or self.keys_file is not None
        if not has_key and not self.allow_open and not is_loopback(self.host):
            raise ValueError(
                f"listening on {self.host!r} would let anyone who can reach this machine change "
                "workflows: set an API key (KVFLOW_API_KEY or --api-key) or make "
                "keys (KVFLOW_KEYS_FILE or --keys), or listen on 127.0.0.1, "
                "or say that it is meant (KVFLOW_ALLOW_OPEN=1 or --allow-open)"
            )
        return self

    @model_validator(mode="after")
    def _tls_key_needs_a_certificate(self) -> ServiceSettings:
        if self.tls_key is not None and self.tls_cert is None:
            raise ValueError("tls_key needs a certificate, too (KVFLOW_TLS_CERT or --tls-cert)")
        return self

    @model_validator(mode="after")
    def _engine_is_not_this_service(self) -> ServiceSettings:
        if self.engine_url is not None:
            parts = urlsplit(self.engine_url)
            here = is_loopback(parts.hostname or "") or parts.hostname == self.host
            if here and parts.port == self.port:
                raise ValueError(
                    f"engine_url {self.engine_url} is this service's own address, so each call "
                    "would come back for ever; name the engine's, as http://127.0.0.1:30000"
                )
        return self

    @property
    def heartbeat_s(self) -> float:
        """Longest silence on a stream, in seconds."""
        return self.lease_s / HEARTBEATS_PER_LEASE

    @property
    def stall_s(self) -> float:
        """How long a stream's reader may take nothing before its connection is given up."""
        return self.lease_s * 3

    def lines(self) -> list[str]:
        """``name = value`` for each setting that is not what it is by default, secrets masked.

        Where it listens and where workflows are kept is always among them.
        """
        values = {
            name: getattr(self, name)
            for name, field in type(self).model_fields.items()
            if name in _ALWAYS_SAID or getattr(self, name) != field.default
        }
        if self.database is not None:
            values["database"] = masked(self.database)
        return [f"{name} = {value}" for name, value in values.items()]


def is_loopback(host: str) -> bool:
    """Whether ``host`` can only be reached from this machine. Looks nothing up."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
