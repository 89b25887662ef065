"""``kvflow serve`` as a process of its own, and what a process uses of the machine."""

from __future__ import annotations

import os
from pathlib import Path

from kvflow.demo.service import ServiceProcess

__all__ = ["cpu_s", "resident_bytes", "service_process"]

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def service_process(log: Path, *options: str) -> ServiceProcess:
    """A service that no setting of the caller's environment (``KVFLOW_...``) reaches."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("KVFLOW_")}
    return ServiceProcess(log, *options, environment=clean)


def cpu_s(pid: int) -> float:
    """CPU time that the process has used, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def resident_bytes(pid: int) -> int:
    """Memory of the process that is in RAM and its own (what it shares with files is left out)."""
    pages = Path(f"/proc/{pid}/statm").read_text().split()
    return (int(pages[1]) - int(pages[2])) * _PAGE_BYTES
