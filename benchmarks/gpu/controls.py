"""Plugins for SGLang that make a copy late, or let a batch read what has not arrived.

Each is found by SGLang like an installed one: through the entry points of a distribution, here a
folder on ``PYTHONPATH`` that holds one module and its metadata.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

__all__ = ["PLUGINS", "install_plugins"]

_LATE: Final = '''
"""On a GPU: what is copied to the device comes a second or two late."""

CYCLES = 3_000_000_000


def register():
    import torch
    from sglang.srt.mem_cache.hybrid_cache.hybrid_cache_controller import HybridCacheController

    start_loading = HybridCacheController.start_loading

    def start_late(self):
        if self.load_queue:
            engine = getattr(self, "l2_transfer_engine", None)
            loads = self.load_stream if engine is None else engine.host_to_device_stream
            with torch.cuda.stream(loads):
                torch.cuda._sleep(CYCLES)
        return start_loading(self)

    HybridCacheController.start_loading = start_late
'''

_NAIVE: Final = '''
"""Batches do not wait for copies that they did not queue, and no request is passed over."""


def register():
    from kvflow.sglang_plugin.schedule import StatusAwareScheduling

    StatusAwareScheduling._make_wait = lambda self, batch: None
    StatusAwareScheduling._passed_over = lambda self, scheduler: frozenset()
'''

PLUGINS: Final = MappingProxyType({"kvflow_late_copies": _LATE, "kvflow_naive_prefetch": _NAIVE})


def install_plugins(
    folder: Path, names: Iterable[str], environ: Mapping[str, str] = os.environ
) -> Mapping[str, str]:
    """Lay plugins out under ``folder``; the variables that make an engine load them.

    What is on the search path of ``environ`` stays there: SGLang itself may be.
    """
    names = list(names)
    for name in names:
        info = folder / f"{name}-0.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.py").write_text(PLUGINS[name])
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0\n")
        (info / "entry_points.txt").write_text(f"[sglang.srt.plugins]\n{name} = {name}:register\n")
    if not names:
        return {}
    search_path = [str(folder), *filter(None, [environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(search_path), "SGLANG_PLUGINS": ",".join(names)}
