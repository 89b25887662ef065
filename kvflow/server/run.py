"""Running the service as a process of its own."""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import resource
import socket
from typing import Final

import uvicorn

from kvflow import __version__
from kvflow.errors import EnvironmentProblemError
from kvflow.server.app import Service, build_service
from kvflow.server.http_protocol import http_protocol
from kvflow.server.logs import configure_logging
from kvflow.server.settings import ServiceSettings
from kvflow.server.store.place import default_database
from kvflow.server.tls import check_certificate

__all__ = ["ServiceServer", "listen", "run"]

_BACKLOG: Final = 2048

logger = logging.getLogger("kvflow.server")


class ServiceServer(uvicorn.Server):
    """Uvicorn, except that a shutdown ends the endless responses before waiting for connections.

    Uvicorn tells an app of a shutdown only after all responses have ended, which a stream's never
    does by itself.
    """

    def __init__(
        self, service: Service, settings: ServiceSettings, *, own_process: bool = False
    ) -> None:
        super().__init__(
            uvicorn.Config(
                service.app,
                http=http_protocol(),
                log_config=None,
                log_level=settings.log_level,
                access_log=settings.access_log,
                lifespan="on",
                server_header=False,
                ssl_certfile=settings.tls_cert,
                ssl_keyfile=settings.tls_key,
                timeout_graceful_shutdown=max(1, round(settings.shutdown_timeout_s)),
            )
        )
        self._service = service
        self._own_process = own_process

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._own_process:
            _spare_the_collector()
        for one in sockets or ():
            logger.info("listening on %s", _url(one, secure=self.config.is_ssl))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.streams.shut_down()
        self._service.bus.close()
        await super().shutdown(sockets)


def run(settings: ServiceSettings) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        EnvironmentProblemError: the address cannot be listened on, the recording not written, or
            the database, the key file or the certificate not used.
    """
    configure_logging(settings.log_format, settings.log_level)
    if settings.tls_cert is not None:
        check_certificate(settings.tls_cert, settings.tls_key)
    if settings.database is None:
        settings = settings.model_copy(update={"database": default_database(settings.port)})
    _allow_many_connections()
    sockets = listen(settings.host, settings.port)
    try:
        service = build_service(settings)
    except BaseException:
        for one in sockets:
            one.close()
        raise
    logger.info("KVFlow service %s with %s", __version__, ", ".join(settings.lines()))
    # Uvicorn shuts down on SIGINT and then raises it again; that is no news to anyone.
    with contextlib.suppress(KeyboardInterrupt):
        ServiceServer(service, settings, own_process=True).run(sockets=sockets)


def _spare_the_collector() -> None:
    """Have Python's garbage collector look less often, and never at what is there by now.

    A full collection looks at every object, which takes tens of milliseconds for the program alone
    and more with each workflow that was loaded, while all requests wait. Workflows are no cycles,
    so they go without it.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)


def _allow_many_connections() -> None:
    """Raise the number of open files to what may be: 1,024 is common, and engines need one each."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen on every address of ``host``, all with the same port.

    Raises:
        EnvironmentProblemError: an address cannot be listened on.
    """
    sockets: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(found):
            one = socket.socket(family, kind, protocol)
            sockets.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                # "::" must not take the IPv4 port as well, which has a socket of its own.
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind((address[0], port, *address[2:]))
            # Until it listens, another socket may be bound to the same address.
            one.listen(_BACKLOG)
            port = one.getsockname()[1]
    except OSError as error:
        for one in sockets:
            one.close()
        raise _listening_problem(host, port, error) from error
    return sockets


def _listening_problem(host: str, port: int, error: OSError) -> EnvironmentProblemError:
    where = f"cannot listen on {host} port {port}"
    if error.errno == errno.EADDRINUSE:
        return EnvironmentProblemError(
            f"{where}: it is in use",
            "stop the program that uses it (it may be another kvflow serve), "
            "or choose another port with --port",
        )
    if error.errno == errno.EACCES:
        return EnvironmentProblemError(f"{where}: not permitted", "choose a port above 1023")
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return EnvironmentProblemError(
            f"{where}: this machine has no such address",
            "listen on 127.0.0.1, on an address of this machine, or on 0.0.0.0 for all of them",
        )
    return EnvironmentProblemError(f"{where}: {error.strerror or error}", "choose another address")


def _url(listening: socket.socket, *, secure: bool) -> str:
    host, port = listening.getsockname()[:2]
    scheme = "https" if secure else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
