"""The service: tracks workflows by their agents' events and tells the engines."""

from kvflow.server.app import Service, build_service, create_app
from kvflow.server.run import run
from kvflow.server.settings import ServiceSettings

__all__ = ["Service", "ServiceSettings", "build_service", "create_app", "run"]
