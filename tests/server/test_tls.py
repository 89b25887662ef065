"""HTTPS, with certificates of an authority made for the test."""

from __future__ import annotations

import logging
import ssl
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
import trustme
from pydantic import ValidationError

from kvflow.cli.main import main
from kvflow.errors import EnvironmentProblemError
from kvflow.server import ServiceSettings
from kvflow.server.tls import check_certificate
from tests.server.running import PATIENCE_S, running_service, stream
from tests.server.workflow_bodies import cycle


@dataclass(frozen=True)
class Files:
    cert: Path
    key: Path
    both: Path
    trusting: ssl.SSLContext


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "localhost")
    cert, key, both = (folder / name for name in ("cert.pem", "key.pem", "both.pem"))
    cert.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    both.write_bytes(issued.private_key_and_cert_chain_pem.bytes())
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    return Files(cert, key, both, trusting)


@pytest.mark.parametrize("in_one_file", [False, True])
def test_the_service_speaks_https(
    files: Files, in_one_file: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    settings = ServiceSettings(
        tls_cert=files.both if in_one_file else files.cert,
        tls_key=None if in_one_file else files.key,
    )
    with running_service(settings) as service:
        url = service.url.replace("http://", "https://")
        with httpx2.Client(base_url=url, verify=files.trusting, timeout=PATIENCE_S) as http:
            assert http.post("/v1/workflows", json=cycle()).status_code == 201
            with stream(http) as reader:
                assert reader.next() is not None
        with pytest.raises(httpx2.ConnectError, match="certificate verify failed"):
            httpx2.get(f"{url}/health", trust_env=False)
        with pytest.raises(httpx2.TransportError):
            httpx2.get(f"{service.url}/health", trust_env=False)
    assert f"listening on {url}" in caplog.text


def test_the_sdk_trusts_what_ssl_cert_file_names(files: Files, tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    both, root = tmp_path / "both.pem", tmp_path / "root.pem"
    both.write_bytes(issued.private_key_and_cert_chain_pem.bytes())
    root.write_bytes(authority.cert_pem.bytes())
    with running_service(ServiceSettings(tls_cert=both)) as service:
        url = service.url.replace("http://", "https://")
        program = (
            "from kvflow.agent_sdk import KVFlowClient\n"
            f"with KVFlowClient({url!r}) as client: print(client.list_workflows())"
        )
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={"SSL_CERT_FILE": str(root), "PATH": ""},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    assert done.returncode == 0, done.stderr


def test_a_key_alone_is_a_mistake(files: Files) -> None:
    with pytest.raises(ValidationError, match="KVFLOW_TLS_CERT"):
        ServiceSettings(tls_key=files.key)


def test_files_that_cannot_be_used(files: Files, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    other.write_bytes(trustme.CA().issue_cert("127.0.0.1").private_key_pem.bytes())
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    encrypted = tmp_path / "encrypted.pem"
    encrypted.write_bytes(_encrypted(files.key))

    for cert, key, words in (
        (tmp_path / "none.pem", None, "cannot be read"),
        (files.cert, tmp_path / "none.pem", "cannot be read"),
        (files.cert, None, "cannot be used for HTTPS"),
        (files.cert, other, "cannot be used for HTTPS"),
        (empty, files.key, "cannot be used for HTTPS"),
        (files.cert, encrypted, "encrypted"),
    ):
        with pytest.raises(EnvironmentProblemError, match=words):
            check_certificate(cert, key)


def test_serve_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--port", "0", "--tls-cert", str(tmp_path / "none.pem")]) == 1
    assert "none.pem cannot be read" in capsys.readouterr().err


def _encrypted(key: Path) -> bytes:
    from cryptography.hazmat.primitives import serialization

    loaded = serialization.load_pem_private_key(key.read_bytes(), None)
    return loaded.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
