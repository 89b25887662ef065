"""Dockerfiles and the compose file, as far as they can be judged without a Docker engine."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from kvflow.engine import EngineOptions
from kvflow.server import ServiceSettings
from tests.docker.local_stack import COMPOSE, ROOT, compose, start_order, with_profile

DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
RAW: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
SERVICES: dict[str, dict[str, Any]] = compose()["services"]


def test_there_are_images_for_the_service_and_both_engines() -> None:
    assert [path.name for path in DOCKERFILES] == [
        "engine-cpu.Dockerfile",
        "engine-gpu.Dockerfile",
        "service.Dockerfile",
    ]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(path: Path) -> None:
    program = Path(sys.executable).parent / "hadolint"
    done = subprocess.run(
        [str(program), "--no-color", str(path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_are_pinned_checked_and_without_root(path: Path) -> None:
    lines = path.read_text().splitlines()
    for line in lines:
        if line.startswith("FROM"):
            assert re.match(r"FROM [\w./-]+:v?\d+\.\d+\.\d+[\w.-]*( AS \w+)?$", line), line
    users = [line.split()[1] for line in lines if line.startswith("USER")]
    assert users == ["10001"]
    assert any(line.startswith("HEALTHCHECK") for line in lines)


def test_the_compose_file_fits_the_specification() -> None:
    # A package that carries the schema of the Compose Specification; it is not imported, as its
    # own dependencies are not installed.
    package = find_spec("check_jsonschema")
    assert package is not None
    assert package.origin is not None
    vendored = Path(package.origin).parent / "builtin_schemas" / "vendor"
    schema = json.loads((vendored / "compose-spec.json").read_text())
    validator = jsonschema.validators.validator_for(schema)(schema)
    assert [error.message for error in validator.iter_errors(RAW)] == []
    # The schema is not one that takes everything.
    assert list(validator.iter_errors({**RAW, "services": {"a": {"imagine": "x"}}}))


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_pinned_checked_confined_and_local(name: str) -> None:
    service = SERVICES[name]
    assert set(service["profiles"]) <= {"cpu", "gpu"}
    assert service["healthcheck"]["test"][0] == "CMD"
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert [port.split(":")[0] for port in service["ports"]] == ["127.0.0.1"]
    assert all(
        one["condition"] == "service_healthy" for one in service.get("depends_on", {}).values()
    )
    if "build" in service:
        assert (ROOT / service["build"]["dockerfile"]).is_file()
    else:
        assert re.search(r":v?\d+\.\d+\.\d+$", service["image"])
        assert int(service["user"].partition(":")[0]) > 0
    for mount in service["volumes"]:
        source = mount.split(":")[0]
        if source.startswith("."):
            assert (COMPOSE.parent / source).exists()
            assert mount.endswith(":ro")
        else:
            assert source in RAW["volumes"]


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_a_profile_brings_one_engine_and_all_else(profile: str) -> None:
    services = with_profile(compose(), profile)
    assert set(services) == {"mosquitto", "service", f"engine-{profile}", "prometheus", "grafana"}
    order = start_order(services)
    assert order.index("mosquitto") < order.index("service") < order.index(f"engine-{profile}")


def test_the_services_settings_exist() -> None:
    known = {f"KVFLOW_{name.upper()}" for name in ServiceSettings.model_fields}
    assert set(SERVICES["service"]["environment"]) <= known


def test_the_image_starts_what_the_compose_file_starts() -> None:
    """Whoever runs an image by itself gets the same program."""
    for name, dockerfile in (
        ("service", "service"),
        ("engine-cpu", "engine-cpu"),
        ("engine-gpu", "engine-gpu"),
    ):
        text = (ROOT / "docker" / f"{dockerfile}.Dockerfile").read_text()
        (line,) = re.findall(r"^CMD (.*)$", text, re.MULTILINE)
        words = [word for part in SERVICES[name]["command"] for word in part.split("=")]
        image = json.loads(line)
        assert words[: len(image)] == image


def test_the_small_models_name() -> None:
    assert EngineOptions().model == "smollm2"
    for name in ("engine-cpu", "engine-gpu"):
        assert "--model=smollm2" in SERVICES[name]["command"]


def test_the_example_of_settings_is_complete() -> None:
    used = set(re.findall(r"\$\{(\w+):-", COMPOSE.read_text()))
    example = (COMPOSE.parent / ".env.example").read_text()
    assert set(re.findall(r"^#?([A-Z][A-Z0-9_]*)=", example, re.MULTILINE)) == used
    for name, value in re.findall(r"^#([A-Z][A-Z0-9_]*)=(.+)$", example, re.MULTILINE):
        assert f"${{{name}:-{value}}}" in COMPOSE.read_text(), name


def test_grafana_finds_its_provisioning() -> None:
    mounts = dict(mount.split(":")[:2] for mount in SERVICES["grafana"]["volumes"])
    provisioning = COMPOSE.parent / "grafana" / "provisioning"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "kvflow.yaml").read_text())[
        "providers"
    ]
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]
    assert mounts["./grafana/provisioning"] == "/etc/grafana/provisioning"
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home.startswith(provider["options"]["path"] + "/")
    assert (COMPOSE.parent / "grafana" / "dashboards" / Path(home).name).is_file()
    sources = (provisioning / "datasources" / "prometheus.yaml").read_text()
    for variable in re.findall(r"\$\{(\w+)\}", sources):
        assert variable in SERVICES["grafana"]["environment"]


def test_the_build_context_holds_what_the_images_copy() -> None:
    kept = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert all((ROOT / name).exists() for name in kept)
    # What the package's metadata names must be there, too.
    assert {"kvflow", "requirements", "pyproject.toml", "README.md", "LICENSE"} == set(kept)
