"""Plugins for SGLang that break something on purpose, for negative controls.

Each is found by SGLang like an installed one: through entry points of a distribution, here a folder
on ``PYTHONPATH`` that holds one module and its metadata.
"""

from __future__ import annotations

from pathlib import Path

BROKEN_COPY = '''
"""Copies between host pool and device pool do nothing."""

def register():
    from kvflow.engine import cpu_support
    from sglang.srt.mem_cache.pool_host import mha
    assert hasattr(mha, "transfer_kv_direct") or cpu_support
    mha.transfer_kv_direct = lambda *args, **kwargs: None
'''

DEAF_RANKS = '''
"""Ranks other than the first take no notice of steps-to-execution."""

def register():
    from kvflow.sglang_plugin.weights import WorkflowWeights
    hear = WorkflowWeights.apply_in_band

    def apply_in_band(self, metadata):
        import torch.distributed as dist
        if dist.get_rank() == 0:
            hear(self, metadata)

    WorkflowWeights.apply_in_band = apply_in_band
'''

NAIVE_PREFETCH = '''
"""Batches do not wait for copies that they did not queue, and no request is passed over."""

def register():
    from kvflow.sglang_plugin.schedule import StatusAwareScheduling
    StatusAwareScheduling._make_wait = lambda self, batch: None
    StatusAwareScheduling._passed_over = lambda self, scheduler: frozenset()
'''


def install_plugin(folder: Path, name: str, source: str) -> dict[str, str]:
    """Lay the plugin out under ``folder``; returns the variables that make an engine load it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(source)
    info = folder / f"{name}-0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0\n")
    (info / "entry_points.txt").write_text(f"[sglang.srt.plugins]\n{name} = {name}:register\n")
    return {"PYTHONPATH": str(folder), "SGLANG_PLUGINS": name}
