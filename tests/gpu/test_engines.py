"""The flags that engines are started with, and the checkpoints they are given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.gpu.engines import engine_flags
from benchmarks.gpu.shapes import SHAPES, write_config
from kvflow.engine.flags import flag_value


def test_on_a_gpu_nothing_is_needed_that_is_not_packed() -> None:
    flags = engine_flags("cuda", dummy=True, max_running=8, context_tokens=9000)
    assert flag_value(flags, "--attention-backend") == "triton"
    assert flag_value(flags, "--sampling-backend") == "pytorch"
    assert flag_value(flags, "--load-format") == "dummy"
    assert flag_value(flags, "--cuda-graph-max-bs-decode") == "8"


def test_on_the_cpu_the_launcher_s_own_backends_stay() -> None:
    flags = engine_flags("cpu", dummy=False, max_running=4, context_tokens=1024)
    assert flag_value(flags, "--attention-backend") is None
    assert flag_value(flags, "--load-format") is None
    assert flag_value(flags, "--max-running-requests") == "4"
    assert "--skip-tokenizer-init" in flags


@pytest.mark.parametrize("name", SHAPES)
def test_transformers_reads_the_shape_back(tmp_path: Path, name: str) -> None:
    from transformers import AutoConfig

    shape = SHAPES[name]
    config = AutoConfig.from_pretrained(write_config(tmp_path, name))
    assert config.num_hidden_layers == shape.layers
    assert config.num_key_value_heads == shape.kv_heads
    assert getattr(config, "head_dim", shape.head_dim) == shape.head_dim
    assert config.vocab_size == shape.vocabulary
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
