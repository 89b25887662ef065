"""The scenarios are those that were asked for."""

from __future__ import annotations

from itertools import product

from benchmarks.gpu.grid import ARM_VALUE, DRY, PIECES, REAL, Bench, benches
from kvflow.bench.arms import ARMS
from kvflow.bench.needs import workload_needs
from kvflow.workload import Scenario, build_workload


def of_piece(piece: str, model: str | None = None) -> list[Bench]:
    return [
        bench
        for bench in benches(REAL)
        if bench.piece == piece and (model is None or bench.model == model)
    ]


def lengths(scenario: Scenario) -> tuple[object, int, int]:
    prompts = scenario.prompts
    return prompts.fixed_tokens, prompts.dynamic_tokens, prompts.output_tokens


def test_every_piece_but_correctness_has_scenarios_at_both_scales() -> None:
    for scale in (REAL, DRY):
        assert {bench.piece for bench in benches(scale)} == set(PIECES) - {"a"}


def test_the_paper_s_grid_on_both_models() -> None:
    for model in ("llama-3.1-8b", "qwen2.5-32b"):
        (bench,) = of_piece("b", model)
        found = {
            (*lengths(play.scenario), play.scenario.agents.branches): play.scenario
            for play in bench.plays
        }
        assert found.keys() == set(product((4096, 8192), (32, 256), (32, 256), (1, 2)))
        assert set(bench.arms) == set(ARM_VALUE) == set(ARMS)


def test_ten_calls_a_round_whatever_the_branches() -> None:
    for bench in of_piece("b"):
        for play in bench.plays:
            rounds = play.scenario.agents.rounds
            (workflow,) = build_workload(play.scenario).workflows()
            assert len(workflow.calls) == 10 * rounds
            assert play.scenario.warm_up_rounds < rounds


def test_many_workflows() -> None:
    (bench,) = of_piece("c", "llama-3.1-8b")
    found = {(*lengths(play.scenario), play.scenario.load.concurrency) for play in bench.plays}
    assert {(512, 256, 256, 128), (1024, 256, 256, 64), (512, 256, 256, 10)} <= found
    assert {(512, 256, 256, 10), (1024, 256, 256, 10)} == {
        (*lengths(play.scenario), play.scenario.load.concurrency)
        for play in of_piece("c", "qwen2.5-32b")[0].plays
    }


def test_peer_shares_part_of_its_prompts() -> None:
    ((play,),) = (bench.plays for bench in of_piece("d"))
    assert play.scenario.agents.agents == 4
    first, second = next(iter(build_workload(play.scenario).workflows())).calls[:2]
    shared = [a for a, b in zip(first.prompt, second.prompt, strict=False) if a == b]
    assert 0 < sum(piece.tokens for piece in shared) < first.fixed_tokens


def test_nothing_is_ever_used_again_where_the_own_cost_is_measured() -> None:
    for bench in of_piece("e"):
        for play in bench.plays:
            workload = build_workload(play.scenario)
            pieces = [
                piece
                for workflow in workload.workflows()
                for call in workflow.calls
                for piece in call.prompt
            ]
            assert len(set(pieces)) == len(pieces)
            assert workload.warm_up_calls == 0


def test_in_the_lower_tiers_the_device_holds_few_calls() -> None:
    host, storage = of_piece("f")
    for bench in (host, storage):
        (play,) = bench.plays
        needs = workload_needs(build_workload(play.scenario).workflows(), 16)
        assert play.scenario.cache.device_tokens < 3 * needs.largest_call_tokens
    assert host.plays[0].scenario.cache.host_tokens > needs.cached_tokens
    assert storage.plays[0].scenario.cache.storage
    assert storage.plays[0].scenario.cache.host_tokens < needs.cached_tokens / 2


def test_the_longest_call_fits_into_every_cache() -> None:
    for scale in (REAL, DRY):
        for bench in benches(scale):
            for play in bench.plays:
                needs = workload_needs(build_workload(play.scenario).workflows(), 16)
                assert needs.largest_call_tokens <= play.scenario.cache.device_tokens
                assert needs.calls > build_workload(play.scenario).warm_up_calls


def test_host_tiers_are_larger_than_the_device_s_as_sglang_wants() -> None:
    for scale in (REAL, DRY):
        for bench in benches(scale):
            cache = bench.plays[0].scenario.cache
            assert cache.host_tokens == 0 or cache.host_tokens > cache.device_tokens
            assert all(play.scenario.cache == cache for play in bench.plays)
