"""The presets' arithmetic, against figures that are known elsewhere."""

import pytest

from kvflow.errors import InvalidInputError
from kvflow.simulator.presets import (
    GPUS,
    MEMORY_FRACTION,
    MODELS,
    PREFILL_FLOPS_FRACTION,
    cost_model,
    device_tokens,
    sglang_mem_fraction,
)


@pytest.mark.parametrize(
    ("model", "kv_kib", "parameters"),
    [("llama-3.1-8b", 128, 8.03e9), ("qwen2.5-32b", 256, 32.76e9), ("smollm2-135m", 22.5, 134.5e6)],
)
def test_shapes_give_the_published_sizes(model: str, kv_kib: float, parameters: float) -> None:
    shape = next(shape for name, shape in MODELS.items() if name == model)
    assert shape.kv_bytes_per_token == kv_kib * 1024
    assert shape.parameters == pytest.approx(parameters, rel=0.001)


def test_a_cost_model_by_hand() -> None:
    costs = cost_model("h100", "llama-3.1-8b")
    # 32 layers of 4096 x (2 x 4096 + 2 x 1024 + 3 x 14336) weights, two operations each.
    operations = 2 * 32 * 4096 * (2 * 4096 + 2 * 1024 + 3 * 14336)
    assert costs.prefill_s_per_token == pytest.approx(operations / (989e12 * 0.5))
    assert costs.prefill_s_per_token_pair == pytest.approx(4 * 32 * 4096 / (989e12 * 0.5))
    assert costs.decode_step_s == pytest.approx(8.03e9 * 2 / (3350e9 * 0.7), rel=0.001)
    assert costs.load.tokens_per_s == pytest.approx(55.6e9 / 131072)
    assert (PREFILL_FLOPS_FRACTION, MEMORY_FRACTION) == (0.5, 0.7)


def test_two_gpus_take_half_as_long_and_load_twice_as_fast() -> None:
    one, two = cost_model("a100", "qwen2.5-32b"), cost_model("a100", "qwen2.5-32b", tp=2)
    overhead = one.step_overhead_s
    assert two.prefill_s([(4096, 512)]) - overhead == pytest.approx(
        (one.prefill_s([(4096, 512)]) - overhead) / 2
    )
    assert two.load.tokens_per_s == pytest.approx(2 * one.load.tokens_per_s)
    assert two.kv_bytes_per_token == one.kv_bytes_per_token
    assert two.name == "2x a100 qwen2.5-32b"


def test_memory_by_hand() -> None:
    # 81,559 MiB less 512, 8,192 x 1.5, 2 x 256 and 128.
    assert sglang_mem_fraction("h100") == round((81_559 - 13_440) / 81_559, 3)
    assert sglang_mem_fraction("a10g") == round((23_028 - 6_880) / 23_028, 3)
    tokens = device_tokens("h100", "llama-3.1-8b", mem_fraction=0.9)
    free = 0.9 * 81_559 * 2**20 - 2 * MODELS["llama-3.1-8b"].parameters
    assert tokens == int(free // 131072)


def test_a_model_that_does_not_fit_says_so() -> None:
    with pytest.raises(InvalidInputError, match=r"66 GB\) do not fit on 1 x 'a10g'"):
        device_tokens("a10g", "qwen2.5-32b")
    assert device_tokens("h100", "qwen2.5-32b") < 25_000 < device_tokens("h100", "qwen2.5-32b", 2)


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("model", MODELS)
def test_all_presets_make_sense(gpu: str, model: str) -> None:
    costs = cost_model(gpu, model)
    assert 0 < costs.decode_s(1, 1000) < costs.prefill_s([(100_000, 0)])
    assert costs.load.seconds(1000) > 0


@pytest.mark.parametrize(("gpu", "model"), [("b200", "qwen2.5-32b"), ("h100", "gpt-2")])
def test_an_unknown_name_lists_the_known(gpu: str, model: str) -> None:
    with pytest.raises(InvalidInputError, match=r"a10g, l4|llama-3\.1-8b, qwen"):
        cost_model(gpu, model)
