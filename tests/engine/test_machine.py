from __future__ import annotations

import os
import platform
from pathlib import Path

import kvflow
from kvflow.engine.machine import available_bytes, cpu_model, hardware, versions


def test_versions_name_what_takes_part() -> None:
    found = versions()
    assert found["kvflow"] == kvflow.__version__
    assert found["python"] == platform.python_version()


def test_hardware_names_the_device_and_the_cores() -> None:
    found = hardware("cpu", ())
    assert found["device"] == "cpu"
    assert found["cores"] >= 1  # type: ignore[operator]
    assert found["gpus"] == []


def test_the_cpu_model_is_the_kernels(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Some CPU: 2 GHz\nmodel name\t: other\n")
    assert cpu_model(cpuinfo) == "Some CPU: 2 GHz"
    assert cpu_model(tmp_path / "none")


def test_available_memory_is_the_kernels(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  4000 kB\nMemAvailable:    2000 kB\n")
    assert available_bytes(meminfo) == 2000 * 1024
    assert available_bytes(tmp_path / "none") is None
    there = available_bytes()
    assert there is not None
    assert 0 < there <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
