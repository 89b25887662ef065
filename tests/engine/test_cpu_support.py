from __future__ import annotations

import sys

import pytest

from kvflow.engine import cpu_support
from kvflow.engine.cpu_support import CPU_ENGINE_VARIABLE, copy_tokens, register


def test_inert_unless_the_launcher_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise AssertionError("SGLang was touched")

    monkeypatch.setattr(cpu_support, "_patch_host_pools", fail)
    monkeypatch.delenv(CPU_ENGINE_VARIABLE, raising=False)
    register()
    monkeypatch.setenv(CPU_ENGINE_VARIABLE, "1")
    with pytest.raises(AssertionError):
        register()


def test_an_unknown_sglang_ends_the_process_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    # SGLang logs and forgets an ordinary exception of a plugin.
    monkeypatch.setenv(CPU_ENGINE_VARIABLE, "1")
    monkeypatch.setitem(sys.modules, "sglang.srt.mem_cache.pool_host.base", None)
    with pytest.raises(SystemExit, match="kvflow doctor"):
        register()


def test_copy_tokens_moves_rows_in_every_layer() -> None:
    torch = pytest.importorskip("torch")
    source = [torch.arange(12.0).reshape(6, 2) + 100 * layer for layer in range(3)]
    target = [torch.zeros(8, 2) for _ in range(3)]
    copy_tokens(source, target, torch.tensor([4, 5, 0]), torch.tensor([1, 2, 7]), page_size=1)
    for layer in range(3):
        assert torch.equal(target[layer][[1, 2, 7]], source[layer][[4, 5, 0]])
        assert target[layer][[0, 3, 4, 5, 6]].count_nonzero() == 0


def test_copy_tokens_refuses_unequal_layers() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError, match="zip"):
        copy_tokens([torch.zeros(2, 1)], [], torch.tensor([0]), torch.tensor([0]), page_size=1)
