from __future__ import annotations

from pathlib import Path

import pytest

from kvflow.engine.device import ConcreteDevice, Device, choose_device, visible_gpus
from kvflow.errors import EnvironmentProblemError

GPU = ("NVIDIA H100",)


@pytest.mark.parametrize(
    ("wanted", "gpus", "cpu_build", "device"),
    [
        ("auto", GPU, False, "cuda"),
        ("auto", GPU, True, "cpu"),
        ("auto", GPU, None, "cpu"),
        ("auto", (), False, "cpu"),
        ("cpu", GPU, False, "cpu"),
        ("cuda", GPU, False, "cuda"),
    ],
)
def test_choice(
    wanted: Device, gpus: tuple[str, ...], cpu_build: bool | None, device: ConcreteDevice
) -> None:
    assert choose_device(wanted, gpus, cpu_build) == device


@pytest.mark.parametrize(
    ("gpus", "cpu_build", "words"), [((), False, "no NVIDIA GPU"), (GPU, True, "CPU build")]
)
def test_cuda_that_cannot_work_is_refused(
    gpus: tuple[str, ...], cpu_build: bool, words: str
) -> None:
    with pytest.raises(EnvironmentProblemError, match=words) as refusal:
        choose_device("cuda", gpus, cpu_build)
    assert refusal.value.remedy


class TestVisibleGpus:
    def program(self, folder: Path, body: str) -> dict[str, str]:
        script = folder / "nvidia-smi"
        script.write_text(f"#!/bin/sh\n{body}\n")
        script.chmod(0o755)
        return {"PATH": str(folder)}

    def test_names_as_the_driver_lists_them(self, tmp_path: Path) -> None:
        environ = self.program(tmp_path, "echo 'NVIDIA A10G'; echo 'NVIDIA H100'")
        assert visible_gpus(environ) == ("NVIDIA A10G", "NVIDIA H100")

    def test_none_where_the_driver_does_not_work(self, tmp_path: Path) -> None:
        assert visible_gpus(self.program(tmp_path, "echo 'no driver'; exit 9")) == ()

    def test_none_without_the_program(self, tmp_path: Path) -> None:
        assert visible_gpus({"PATH": str(tmp_path)}) == ()

    @pytest.mark.parametrize("hidden", ["", "-1"])
    def test_none_where_they_are_hidden(self, tmp_path: Path, hidden: str) -> None:
        environ = self.program(tmp_path, "echo 'NVIDIA A10G'")
        assert visible_gpus({**environ, "CUDA_VISIBLE_DEVICES": hidden}) == ()
