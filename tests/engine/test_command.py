from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from kvflow.engine.command import STAND_INS_DIR, EngineCommand, build_command, cores_per_rank
from kvflow.engine.device import ConcreteDevice
from kvflow.engine.flags import flag_value
from kvflow.engine.options import EngineOptions
from kvflow.errors import InvalidInputError


def build(
    device: ConcreteDevice = "cpu",
    environ: Mapping[str, str] | None = None,
    sglang_version: str = "0.5.23",
    other_plugins: Sequence[str] = (),
    **options: Any,
) -> EngineCommand:
    return build_command(
        EngineOptions(**options),
        model_path="/models/m",
        device=device,
        environ=environ or {},
        cores=[0, 1],
        sglang_version=sglang_version,
        other_plugins=other_plugins,
    )


class TestFlags:
    def test_cpu(self) -> None:
        argv = build(max_total_tokens=2048).argv
        assert argv[1:3] == ("-m", "sglang.launch_server")
        for flag, value in {
            "--model-path": "/models/m",
            "--device": "cpu",
            "--attention-backend": "torch_native",
            "--page-size": "16",
            "--max-total-tokens": "2048",
            "--radix-cache-backend": "kvflow",
        }.items():
            assert flag_value(argv, flag) == value
        assert "--enable-hierarchical-cache" not in argv
        assert "--tp-size" not in argv

    def test_cuda_gets_sglangs_own_defaults(self) -> None:
        argv = build("cuda").argv
        for flag in (
            "--device",
            "--attention-backend",
            "--dtype",
            "--page-size",
            "--sleep-on-idle",
        ):
            assert flag not in argv
        assert "--enable-metrics" in argv

    def test_host_tier(self) -> None:
        argv = build(hicache_ratio=2.5).argv
        assert "--enable-hierarchical-cache" in argv
        assert flag_value(argv, "--hicache-ratio") == "2.5"
        assert flag_value(argv, "--hicache-io-backend") == "direct"
        assert "--hicache-io-backend" not in build("cuda", hicache_ratio=2.5).argv

    def test_stock_has_no_trace_of_kvflow(self) -> None:
        stock = build(radix="stock")
        assert "--radix-cache-backend" not in stock.argv
        assert stock.env["SGLANG_PLUGINS"] == "kvflow_cpu"

    def test_0_5_17_gets_what_it_can_do_on_a_cpu(self) -> None:
        old = build(sglang_version="0.5.17").argv
        assert flag_value(old, "--page-size") == "1"
        assert flag_value(old, "--grammar-backend") == "none"
        new = build(sglang_version="0.5.24.post1").argv
        assert flag_value(new, "--page-size") == "16"
        assert "--grammar-backend" not in new
        assert "--grammar-backend" not in build("cuda", sglang_version="0.5.17").argv

    def test_users_flags_win(self) -> None:
        command = build(
            hicache_ratio=3,
            extra_args=("--page-size=64", "--port", "7", "--host", "::1", "--hicache-ratio", "9"),
        )
        assert command.argv.count("--page-size") == 0
        assert flag_value(command.argv, "--page-size") == "64"
        assert flag_value(command.argv, "--hicache-ratio") == "9"
        assert (command.host, command.port) == ("::1", 7)

    @pytest.mark.parametrize(
        "given", [("--port", "abc"), ("--port=0",), ("--port", "65536"), ("--tp", "two")]
    )
    def test_what_is_no_number_is_refused(self, given: tuple[str, ...]) -> None:
        with pytest.raises(InvalidInputError, match="whole number") as caught:
            build(extra_args=given)
        assert caught.value.field[0] == "sglang flags"

    def test_a_contradicting_device_is_refused(self) -> None:
        with pytest.raises(InvalidInputError, match="kvflow engine --device cuda"):
            build(extra_args=("--device", "cuda"))


class TestEnvironment:
    def test_cpu(self) -> None:
        env = build(environ={"PYTHONPATH": "/mine", "HOME": "/home/me"}).env
        assert env["PYTHONPATH"] == f"{STAND_INS_DIR}:/mine"
        assert env["SGLANG_USE_CPU_ENGINE"] == env["KVFLOW_CPU_ENGINE"] == "1"
        assert env["CUDA_VISIBLE_DEVICES"] == ""
        assert env["HOME"] == "/home/me"

    def test_cuda_sees_nothing_of_the_stand_ins(self) -> None:
        env = build("cuda", environ={"PYTHONPATH": "/mine"}).env
        assert env["PYTHONPATH"] == "/mine"
        for name in ("SGLANG_USE_CPU_ENGINE", "KVFLOW_CPU_ENGINE", "CUDA_VISIBLE_DEVICES"):
            assert name not in env

    def test_other_plugins_stay(self) -> None:
        env = build(other_plugins=["acme"]).env
        assert env["SGLANG_PLUGINS"] == "acme,kvflow,kvflow_cpu"
        env = build(radix="stock", other_plugins=["acme"]).env
        assert env["SGLANG_PLUGINS"] == "acme,kvflow_cpu"

    def test_users_choice_of_plugins_stays(self) -> None:
        environ = {"SGLANG_PLUGINS": "acme, kvflow"}
        env = build(environ=environ, other_plugins=["acme", "other"]).env
        assert env["SGLANG_PLUGINS"] == "acme,kvflow,kvflow_cpu"
        env = build(environ=environ, radix="stock", other_plugins=["acme", "other"]).env
        assert env["SGLANG_PLUGINS"] == "acme,kvflow_cpu"

    def test_options_win_over_everything(self) -> None:
        assert build(environ={"A": "caller"}, env={"A": "option"}).env["A"] == "option"

    def test_search_path_and_plugins_of_options_are_added(self) -> None:
        env = build(env={"PYTHONPATH": "/x", "SGLANG_PLUGINS": "acme"}).env
        assert env["PYTHONPATH"] == f"{STAND_INS_DIR}:/x"
        assert env["SGLANG_PLUGINS"] == "acme,kvflow,kvflow_cpu"

    @pytest.mark.parametrize("options", [{"tp": 3}, {"extra_args": ("--tp", "3")}])
    def test_ranks_share_the_cores(self, options: dict[str, Any]) -> None:
        assert build(**options).env["SGLANG_CPU_OMP_THREADS_BIND"] == "0|1|0"

    def test_users_binding_of_ranks_stays(self) -> None:
        environ = {"SGLANG_CPU_OMP_THREADS_BIND": "1|1"}
        assert build(tp=2, environ=environ).env["SGLANG_CPU_OMP_THREADS_BIND"] == "1|1"
        assert "SGLANG_CPU_OMP_THREADS_BIND" not in build().env


@pytest.mark.parametrize(
    ("ranks", "cores", "text"),
    [
        (1, [0, 1], "0,1"),
        (2, [0, 1, 2, 3], "0,1|2,3"),
        (2, [4, 5, 6], "4,5|6"),
        (3, [0, 1], "0|1|0"),
        (4, [7], "7|7|7|7"),
    ],
)
def test_cores_per_rank(ranks: int, cores: list[int], text: str) -> None:
    assert cores_per_rank(ranks, cores) == text


@pytest.mark.parametrize("given", [(), ("--model-path", "/m"), ("--model-path=/m",)])
def test_shown_flags_name_no_folder_of_this_machine(given: tuple[str, ...]) -> None:
    command = build(extra_args=given)
    assert command.model_path == ("/m" if given else "/models/m")
    shown = command.shown_flags("smollm2")
    assert flag_value(shown, "--model-path") == "smollm2"
    assert not any("/" in flag for flag in shown)


def test_as_shell_shows_only_what_differs() -> None:
    line = build("cuda", environ={"HOME": "/h"}).as_shell({"HOME": "/h"})
    assert line.startswith("env SGLANG_PLUGINS=kvflow,kvflow_cpu TOKENIZERS_PARALLELISM=false ")
    assert "HOME" not in line


@pytest.mark.parametrize(
    ("field", "value"), [("port", 0), ("port", 70000), ("page_size", 0), ("hicache_ratio", -1.0)]
)
def test_numbers_out_of_range_are_named(field: str, value: float) -> None:
    with pytest.raises(InvalidInputError) as refusal:
        EngineOptions(**{field: value})  # type: ignore[arg-type]
    assert refusal.value.field == (field,)
