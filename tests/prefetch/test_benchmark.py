import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks import tables
from benchmarks.prefetch import admission, engines, link, storage, wrong_graph
from benchmarks.prefetch.engines import Arm
from benchmarks.prefetch.workload import (
    Call,
    Ring,
    differences,
    fixed_prefix_tokens,
    prefetch_figures,
    reversed_claims,
    served_from_device,
    shuffled_claims,
    summarize,
)
from kvflow.bench.reply import Reply


def reply(**given: Any) -> Reply:
    return Reply(
        **{
            "text": "yes",
            "prompt_ids": (1, 2, 3),
            "output_ids": (7,),
            "prompt_tokens": 100,
            "cached_tokens": 64,
            "device_tokens": 64,
            "host_tokens": 0,
            "storage_tokens": 0,
            "output_tokens": 1,
            "started_s": 0.0,
            "ttft_s": 0.5,
            "total_s": 1.0,
            **given,
        }
    )


def test_a_ring_asks_new_questions_after_prefixes_that_stay() -> None:
    ring = Ring(agents=3)
    first, second = ring.messages(1, 0), ring.messages(1, 1)
    assert first[0] == second[0]
    assert first[1] != second[1]
    assert first[0] != ring.messages(2, 0)[0]


def test_claims_of_a_ring() -> None:
    ring = Ring(agents=4)
    assert ring.claims(2) == {"a2": 0, "a3": 1, "a0": 2, "a1": 3}
    assert reversed_claims(ring)(2) == {"a2": 0, "a1": 1, "a0": 2, "a3": 3}


@pytest.mark.parametrize("agents", [3, 10])
def test_shuffled_claims_are_never_right_about_what_comes_next(agents: int) -> None:
    ring = Ring(agents=agents)
    claims, again = shuffled_claims(ring, 5), shuffled_claims(ring, 5)
    seen = set()
    for call in range(200):
        running = call % agents
        steps = claims(running)
        assert steps == again(running)
        assert steps[f"a{running}"] == 0
        assert sorted(steps.values()) == list(range(agents))
        assert steps[f"a{(running + 1) % agents}"] > 1
        seen.add(tuple(sorted(steps.items())))
    assert len(seen) >= agents


@pytest.mark.parametrize(
    ("cached", "device", "host", "fixed", "served"),
    [
        (640, 640, 0, 640, True),
        (624, 624, 0, 640, True),
        (623, 623, 0, 640, False),
        (640, 608, 0, 640, True),
        (640, 607, 0, 640, False),
        (656, 640, 16, 640, False),
    ],
)
def test_what_counts_as_served_from_the_device(
    cached: int, device: int, host: int, fixed: int, served: bool
) -> None:
    answer = reply(cached_tokens=cached, device_tokens=device, host_tokens=host)
    assert served_from_device(answer, fixed) is served


def test_sums_leave_cold_calls_out() -> None:
    calls = [
        Call("a", 0, reply(cached_tokens=0, ttft_s=9.0, prompt_ids=(1, 2, 9))),
        Call("a", 1, reply(ttft_s=1.0, prompt_ids=(1, 2, 3, 4))),
        Call("a", 2, reply(ttft_s=3.0, cached_tokens=0, device_tokens=0, prompt_ids=(1, 2, 3))),
    ]
    assert fixed_prefix_tokens(calls) == {"a": 2}
    summary = summarize(calls)
    assert (summary["calls"], summary["hit_rate"]) == (2, 64 / 200)
    assert (summary["ttft_p50_s"], summary["ttft_max_s"]) == (2.0, 3.0)
    assert summary["device_tokens"] == 64
    assert "prompt_ids" not in calls[0].row()


def test_differences_are_found_by_round_and_agent() -> None:
    same, other = reply(output_ids=(1, 2)), reply(output_ids=(1, 3))
    first = [Call("a", 1, same), Call("b", 1, same)]
    assert differences({"x": first, "y": first[::-1]}) == []
    assert differences({"x": first, "y": [Call("a", 1, other)]}) == [
        {"arm": "y", "round": 1, "agent": "a"},
        {"arm": "y", "round": 1, "agent": "b"},
    ]


def test_figures_are_the_growth_of_the_plugins_counters() -> None:
    sample = 'kvflow_prefetched_tokens_total{copy="load"}'
    figures = prefetch_figures({sample: 100.0}, {sample: 160.0, "kvflow_lease_held": 1.0})
    assert figures is not None
    assert (figures["loaded_tokens"], figures["fetched_tokens"]) == (60.0, 0.0)
    assert prefetch_figures({}, {}) is None


def test_a_links_speed_is_that_of_a_large_models_tokens() -> None:
    config = {
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "hidden_size": 576,
    }
    kv_bytes = link.kv_bytes_per_token(config)
    assert kv_bytes == 46_080
    bytes_per_s = link.link_bytes_per_s(4, kv_bytes)
    assert bytes_per_s / kv_bytes == pytest.approx(4e9 / 262_144)
    assert link.kv_bytes_per_token({**config, "num_key_value_heads": None}) == 3 * 46_080


def test_arms_of_one_speed_differ_in_nothing_but_the_cache() -> None:
    arms = link.arms(1, 46_080)
    assert {(arm.device_tokens, arm.hicache_ratio, arm.extra_args) for arm in arms} == {
        (3072, 6.0, ())
    }
    assert {arm.variables["KVFLOW_CPU_LINK_BYTES_PER_S"] for arm in arms} == {"175781250"}
    assert [arm.variables.get("KVFLOW_PREFETCH") for arm in arms] == [None, "off", "on"]
    assert "KVFLOW_CPU_LINK_BYTES_PER_S" not in link.arms(None, 46_080)[0].variables


def test_ratios_are_paired() -> None:
    blocks = {
        "stock": [{"calls_per_s": 1.0}, {"calls_per_s": 2.0}, {"calls_per_s": 4.0}],
        "kvflow": [{"calls_per_s": 0.9}, {"calls_per_s": 2.2}, {"calls_per_s": 4.0}],
    }
    ratio = wrong_graph.ratio_of(blocks)
    assert ratio == {"median": 1.0, "least": 0.9, "most": pytest.approx(1.1)}


def test_workflows_are_through_with_their_last_call() -> None:
    done = admission.completion(
        [
            Call("w0", 1, reply(started_s=10.0, total_s=2.0, ttft_s=1.0)),
            Call("w0", 2, reply(started_s=12.0, total_s=1.0, ttft_s=0.5)),
            Call("w1", 1, reply(started_s=10.0, total_s=9.0, ttft_s=8.0)),
        ]
    )
    assert done["workflow_p50_s"] == 6.0
    assert (done["total_s"], done["longest_wait_s"]) == (9.0, 8.0)
    assert done["calls_per_s"] == pytest.approx(1 / 3)


class NoEngine:
    """Answers like an engine in which every call finds the same."""

    flags: Sequence[str] = ("--page-size", "16")

    def __init__(self, arm: Arm) -> None:
        self._arm = arm
        self.now_s = 0.0
        self.asked: list[tuple[str, str, Mapping[str, int | None]]] = []

    def ask(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int,
        identity: Mapping[str, Any],
        steps: Mapping[str, int | None],
    ) -> Reply:
        self.now_s += 1
        self.asked.append((identity["client_id"], identity["agent_id"], steps))
        prompt = tuple(map(ord, "".join(message["content"] for message in messages)))
        return reply(prompt_ids=prompt, started_s=self.now_s)

    def metrics(self) -> dict[str, float]:
        if self._arm.radix == "stock":
            return {}
        return {'kvflow_prefetched_tokens_total{copy="load"}': 16 * self.now_s}

    def empty(self) -> None:
        self.asked.clear()

    def cpu_s(self) -> float:
        return self.now_s


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[NoEngine]:
    """The engines that a benchmark starts, none of which is real."""
    made: list[NoEngine] = []

    @contextmanager
    def running(arm: Arm, env: Mapping[str, str] | None = None) -> Iterator[NoEngine]:
        made.append(NoEngine(arm))
        yield made[-1]

    for module in (engines, wrong_graph, admission):
        monkeypatch.setattr(module, "running", running)
    for module in (link, wrong_graph):
        monkeypatch.setattr(module, "model_kv_bytes", lambda: 46_080)
    return made


@pytest.mark.parametrize(
    ("name", "main", "small", "engines_started", "rows"),
    [
        ("link", link.main, "--agents 3 --speeds 4,none", 8, 8),
        ("storage", storage.main, "--agents 3", 4, 4),
        ("wrong_graph", wrong_graph.main, "--agents 3 --rounds 2", 6, 6),
        ("admission", admission.main, "--workflows 3 --steps 2", 6, 6),
    ],
)
def test_what_a_benchmark_writes_makes_a_table(
    name: str,
    main: Callable[[Sequence[str]], None],
    small: str,
    engines_started: int,
    rows: int,
    started: list[NoEngine],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    main([*small.split(), "--output", str(tmp_path / f"prefetch_{name}.json")])
    assert len(started) == engines_started
    written = json.loads((tmp_path / f"prefetch_{name}.json").read_text(encoding="utf-8"))
    assert written["outputs_identical"] is True
    assert written["environment"]["cpu_model"]
    assert written["seeds"]
    assert written["settings"]
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    marked = f"<!-- table: prefetch_{name} -->\n<!-- end -->\n"
    lines = [line for line in tables.rendered(marked).splitlines() if line.startswith("|")]
    assert len(lines) == rows + 2
    assert len({line.count("|") for line in lines}) == 1


def test_wrong_hints_begin_trusted_and_no_case_hears_of_another(
    started: list[NoEngine], tmp_path: Path
) -> None:
    output = tmp_path / "result.json"
    options = "--agents 3 --rounds 2 --settings device-only --output"
    wrong_graph.main([*options.split(), str(output)])
    ring = Ring(agents=3)
    for engine in started:
        assert {client for client, _, _ in engine.asked} == {"reversed"}
        claimed = [steps for _, _, steps in engine.asked]
        assert claimed[:3] == [ring.claims(agent) for agent in range(3)]
        assert claimed[3:] == [reversed_claims(ring)(agent % 3) for agent in range(6)]
    written = json.loads(output.read_text(encoding="utf-8"))
    # 6 measured calls of 16 tokens each in this stand-in; the cold ones do not count.
    assert written["comparisons"][0]["prefetch"]["loaded_tokens"] == 16 * 6


def test_a_table_without_a_result_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    text = tables.rendered("<!-- table: prefetch_link -->\nold\n<!-- end -->")
    assert text == "<!-- table: prefetch_link -->\nNot measured yet.\n<!-- end -->"
