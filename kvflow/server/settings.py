"""The service's settings: one frozen object, read once, passed explicitly."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from kvflow.protocol import DEFAULT_LEASE_S, Identifier
from kvflow.server.mqtt_url import check_mqtt_url
from kvflow.server.store.place import check_database, masked

__all__ = ["ServiceSettings", "is_loopback"]

DEFAULT_PORT: Final = 8100
_KUBERNETES_SERVICE_LINK: Final = re.compile(r"^(tcp|udp|sctp)://")
_BEARER_TOKEN: Final = re.compile(r"^[\x21-\x7e]+$")

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
    max_workflows: int = Field(
        default=100_000, ge=1, description="Live workflows held at once; creating more is refused."
    )
    max_event_readers: int = Field(
        default=256, ge=0, description="Readers of /v1/events at once; more are refused."
    )
    database: str | None = Field(
        default=None,
        description="Where workflows are kept: a file, 'none' for in memory, or the address of a "
        "Valkey server.",
    )
    record: Path | None = Field(
        default=None, description="File to append workflows and events to, for a replay."
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

    @field_validator("api_key")
    @classmethod
    def _fits_a_header(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not _BEARER_TOKEN.match(value.get_secret_value()):
            raise ValueError("must be one or more printable ASCII characters without spaces")
        return value

    @model_validator(mode="after")
    def _open_only_on_loopback(self) -> ServiceSettings:
        if self.api_key is None and not self.allow_open and not is_loopback(self.host):
            raise ValueError(
                f"listening on {self.host!r} would let anyone who can reach this machine change "
                "workflows: set an API key (KVFLOW_API_KEY or --api-key), or listen on 127.0.0.1, "
                "or say that it is meant (KVFLOW_ALLOW_OPEN=1 or --allow-open)"
            )
        return self

    @property
    def heartbeat_s(self) -> float:
        """Longest silence on a stream, in seconds."""
        return self.lease_s / 3

    @property
    def stall_s(self) -> float:
        """How long a stream's reader may take nothing before its connection is given up."""
        return self.lease_s * 3

    def lines(self) -> list[str]:
        """``name = value`` for every setting, secrets masked."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
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
