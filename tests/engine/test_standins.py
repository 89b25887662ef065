"""The stand-ins, as a process finds them that has their folder on its path."""

from __future__ import annotations

import os
import subprocess
import sys

from kvflow.engine.command import STAND_INS_DIR


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(STAND_INS_DIR), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_folder_holds_the_two_and_nothing_else() -> None:
    assert {entry.name for entry in STAND_INS_DIR.iterdir()} == {"sgl_kernel", "torchvision"}


def test_kernels_can_be_imported_and_fail_when_called() -> None:
    done = run(
        "from sgl_kernel import copy_all_layer_kv_cache_cpu as kernel\n"
        "from sgl_kernel.mamba import causal_conv1d_fn_cpu\n"
        "kernel(1, 2)"
    )
    assert done.returncode == 1
    assert "NotImplementedError: sgl_kernel.copy_all_layer_kv_cache_cpu was called" in done.stderr
    assert "--device cuda" in done.stderr


def test_kernels_that_sglang_probes_for_are_absent() -> None:
    done = run("import sgl_kernel\nfrom sgl_kernel import flash_ops")
    assert done.returncode == 1
    assert "ImportError: cannot import name 'flash_ops'" in done.stderr


def test_torchvision_can_be_imported_as_sglang_and_transformers_do() -> None:
    done = run(
        "import torchvision\n"
        "import torchvision.transforms.v2.functional as v2\n"
        "from torchvision.io import ImageReadMode, decode_image\n"
        "from torchvision.transforms import InterpolationMode, functional\n"
        "from torchvision.transforms.functional import pil_to_tensor\n"
        "print({InterpolationMode.BICUBIC: 1}, torchvision.__version__)\n"
        "decode_image(b'')"
    )
    assert done.stdout == "{<InterpolationMode.BICUBIC: 'bicubic'>: 1} 0.0.0+kvflow.standin\n"
    assert done.returncode == 1
    assert "NotImplementedError: torchvision.io.decode_image was called" in done.stderr


def test_introspection_sees_no_made_up_attributes() -> None:
    assert (
        run(
            "import torchvision.io, sgl_kernel\nassert not hasattr(sgl_kernel, '__wrapped__')\n"
            "assert not hasattr(torchvision.io, '__wrapped__')"
        ).returncode
        == 0
    )
