"""What the answers of piece (a) amount to, and the plugins that break something on purpose."""

from __future__ import annotations

import ast
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest

from benchmarks.gpu.checkpoint import write_checkpoint
from benchmarks.gpu.controls import PLUGINS, install_plugins
from benchmarks.gpu.correctness import ENGINES, Observed, verdict
from benchmarks.gpu.results import PLACES
from benchmarks.gpu.shapes import CORRECTNESS

COLD = Observed("as-is", "cold", 0, 240, 0, 0, (1, 2, 3), (-1.0, -2.0, -3.0))
DEVICE = replace(COLD, place="device", device_tokens=224)
HOST = replace(COLD, place="host", host_tokens=224)
STALE = replace(DEVICE, place="stale", output_ids=(4, 2, 3), logprobs=(-5.0, -2.0, -3.0))


def test_the_engines_together_show_every_place() -> None:
    assert {place for places in ENGINES.values() for place in places} == PLACES


def test_equal_answers_hold_within_the_tolerance() -> None:
    close = replace(HOST, logprobs=(-1.0, -2.01, -3.0))
    assert verdict([COLD, DEVICE, close], 0.05)["holds"]
    found = verdict([COLD, DEVICE, close], 0.001)
    assert not found["holds"]
    assert found["places"]["host"]["largest_difference"] == pytest.approx(0.01)
    assert found["places"]["device"]["equal"] == 1


def test_another_token_is_a_difference() -> None:
    assert not verdict([COLD, replace(DEVICE, output_ids=(1, 2, 4))], 0.05)["holds"]


def test_a_place_that_was_not_reached_shows_nothing() -> None:
    assert not verdict([COLD, replace(DEVICE, device_tokens=16)], 0.05)["holds"]
    assert not verdict([COLD, replace(HOST, host_tokens=0, device_tokens=224)], 0.05)["holds"]
    assert not verdict([replace(COLD, device_tokens=224)], 0.05)["holds"]


def test_the_negative_control_has_to_differ_every_time() -> None:
    assert verdict([COLD, STALE], 0.05)["holds"]
    equal = replace(DEVICE, place="stale", prompt=1)
    assert not verdict([COLD, STALE, replace(COLD, prompt=1), equal], 0.05)["holds"]


def test_nothing_observed_holds_nothing() -> None:
    assert not verdict([], 0.05)["holds"]


def test_an_engine_finds_the_plugins(tmp_path: Path) -> None:
    env = install_plugins(tmp_path, PLUGINS, {})
    assert env["SGLANG_PLUGINS"].split(",") == list(PLUGINS)
    found = [
        entry
        for distribution in metadata.distributions(path=[env["PYTHONPATH"]])
        for entry in distribution.entry_points
    ]
    assert {entry.value for entry in found} == {f"{name}:register" for name in PLUGINS}
    for name in PLUGINS:
        names = [
            node.name
            for node in ast.parse((tmp_path / f"{name}.py").read_text()).body
            if isinstance(node, ast.FunctionDef)
        ]
        assert names == ["register"]


def test_an_engine_still_finds_what_it_found_before(tmp_path: Path) -> None:
    env = install_plugins(tmp_path, ["kvflow_naive_prefetch"], {"PYTHONPATH": "/packed:/checkout"})
    assert env["PYTHONPATH"].split(":") == [str(tmp_path), "/packed", "/checkout"]


def test_without_plugins_nothing_is_set(tmp_path: Path) -> None:
    assert install_plugins(tmp_path, []) == {}


def test_random_weights_are_the_same_each_time_and_make_answers_differ(tmp_path: Path) -> None:
    import torch
    from transformers import LlamaForCausalLM

    for name in ("one", "two"):
        write_checkpoint(tmp_path / name, "float32")
    assert (tmp_path / "one" / "model.safetensors").read_bytes() == (
        tmp_path / "two" / "model.safetensors"
    ).read_bytes()
    model = LlamaForCausalLM.from_pretrained(tmp_path / "one")
    ids = torch.arange(100, 164).reshape(1, -1)
    with torch.no_grad():
        logits = model(ids).logits[0, -1]
        other = model(torch.cat([ids[:, :1] + 1, ids[:, 1:]], 1)).logits[0, -1]
    assert logits.shape == (CORRECTNESS.vocabulary,)
    assert float(logits.std()) > 0.5
    # The first token of 64 is another: even the last one's distribution shows it.
    change = (torch.log_softmax(logits, -1) - torch.log_softmax(other, -1)).abs().max()
    assert float(change) > 0.05
