"""What is measured: pieces (b) to (f) as scenarios, in order of value.

Scenarios that need the same engines are in one ``Bench``, so that engines are started once for all
of them. ``REAL`` has the lengths that are asked for; ``DRY`` goes the same way with a model of next
to no size, and proves the harness on a machine without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

from kvflow.workload import Scenario, parse_scenario

__all__ = ["ARM_VALUE", "DRY", "PIECES", "REAL", "Bench", "Play", "Scale", "benches"]

PAGE_TOKENS: Final = 16

ARM_VALUE: Final = (
    "kvflow",
    "hicache-write-through",
    "lru",
    "limit",
    "kvflow-eviction",
    "hicache-write-back",
    "priority",
)
"""The most valuable first: what KVFlow is against the best stock arm, then against plain SGLang."""

PIECES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "a": "correctness: the same answers wherever the KV comes from",
        "b": "the paper's single workflow: 10 agents in sequence",
        "c": "many workflows at once",
        "d": "a PEER-like workflow: four agents, prompts shared in part",
        "e": "the plugin's own cost: nothing is ever used again",
        "f": "prefixes in host memory alone, and in storage alone",
    }
)


_STORAGE_NOTE: Final = (
    "KVFlow fetches ahead from storage with SGLang 0.5.19 and later; before that a request's own "
    "fetch is all there is, as with stock HiCache"
)


@dataclass(frozen=True, slots=True)
class Scale:
    """Sizes to run at.

    Attributes:
        models: for the single workflow, most valuable first; the first runs everything else.
        cached: of lengths that are cached, and of caches.
        short: of what is new in each call.
        at_once: of numbers of workflows.
        plays: scenarios per bench at most; None: all.
        arms: of those wanted, the ones to run.
        most_repeats: how often a scenario is repeated, at most.
    """

    name: str
    models: tuple[str, ...]
    cached: Callable[[int], int]
    short: Callable[[int], int]
    at_once: Callable[[int], int]
    plays: int | None
    arms: frozenset[str]
    most_repeats: int
    page_tokens: int = PAGE_TOKENS


REAL: Final = Scale(
    "real",
    ("llama-3.1-8b", "qwen2.5-32b"),
    lambda tokens: tokens,
    lambda tokens: tokens,
    lambda count: count,
    None,
    frozenset(ARM_VALUE),
    9,
)
DRY: Final = Scale(
    "dry",
    ("tiny",),
    lambda tokens: tokens // 16,
    lambda tokens: max(4, tokens // 16),
    lambda count: max(2, count // 32),
    2,
    frozenset({"kvflow", "hicache-write-through", "lru"}),
    1,
)


@dataclass(frozen=True, slots=True)
class Play:
    """A scenario and how often it is repeated."""

    scenario: Scenario
    repeats: int

    @property
    def name(self) -> str:
        return self.scenario.name


@dataclass(frozen=True, slots=True)
class Bench:
    """Scenarios on the same engines.

    Attributes:
        arms: most valuable first.
        cache: as in a scenario file; the same for all plays.
        max_running: requests that an engine runs at once.
        note: what a reader should know.
    """

    piece: str
    name: str
    model: str
    arms: tuple[str, ...]
    cache: Mapping[str, Any]
    max_running: int
    plays: tuple[Play, ...]
    note: str = ""


def benches(scale: Scale) -> list[Bench]:
    """All benches, piece by piece, the most valuable of each piece first."""
    made = [
        *(_single(scale, model) for model in scale.models),
        *_many(scale),
        _peer(scale),
        *_own_cost(scale),
        *_lower_tiers(scale),
    ]
    return [_at(scale, bench) for bench in made]


def _single(scale: Scale, model: str) -> Bench:
    """The first of three rounds warms. Long answers are not repeated: it would take too long."""
    device, host = (24_576, 98_304) if model == "qwen2.5-32b" else (40_960, 131_072)
    cache = _cache(scale, device, host)
    plays = []
    for output in (32, 256):
        for branches in (1, 2):
            for fixed in (8192, 4096):
                for dynamic in (32, 256):
                    agents: dict[str, Any] = {"agents": 10, "rounds": 3}
                    if branches > 1:
                        # Ten calls each time: the first agent, then nine choices of one.
                        agents |= {"pattern": "branch", "branches": branches}
                        agents["agents"] = 1 + 9 * branches
                    plays.append(
                        _play(
                            scale,
                            f"f{fixed}-d{dynamic}-o{output}-b{branches}",
                            (fixed, dynamic, output),
                            cache,
                            agents=agents,
                            repeats=3 if output == 32 else 1,
                        )
                    )
    return Bench("b", f"single-{model}", model, ARM_VALUE, cache, 8, tuple(plays))


def _many(scale: Scale) -> Iterator[Bench]:
    """Each workflow has agents of its own, four of them; twice as many workflows as at once."""
    groups = {
        "llama-3.1-8b": ((512, 128), (1024, 64), (512, 10), (1024, 10), (512, 64)),
        "qwen2.5-32b": ((512, 10), (1024, 10)),
        "tiny": ((512, 128), (1024, 10)),
    }
    for model in scale.models:
        device, host = (24_576, 65_536) if model == "qwen2.5-32b" else (98_304, 262_144)
        cache = _cache(scale, device, host)
        plays = []
        for fixed, at_once in groups[model]:
            count = scale.at_once(at_once)
            plays.append(
                _play(
                    scale,
                    f"f{fixed}-x{at_once}",
                    (fixed, 256, 256),
                    cache,
                    agents={"agents": 4, "rounds": 1},
                    load={"workflows": 2 * count, "concurrency": count, "teams": count},
                    repeats=1 if at_once > 10 else 2,
                )
            )
        running = max(scale.at_once(at_once) for _, at_once in groups[model])
        yield Bench("c", f"many-{model}", model, ARM_VALUE, cache, running, tuple(plays))


def _peer(scale: Scale) -> Bench:
    cache = _cache(scale, 40_960, 131_072)
    count = scale.at_once(16)
    play = _play(
        scale,
        "peer",
        (2048, 256, 256),
        cache,
        agents={"agents": 4, "rounds": 1},
        load={"workflows": 2 * count, "concurrency": count, "teams": count},
        repeats=2,
        shared=1024,
    )
    return Bench("d", "peer", scale.models[0], ARM_VALUE, cache, 16, (play,))


def _own_cost(scale: Scale) -> Iterator[Bench]:
    """So many teams that no two workflows have the same; nothing is warmed."""
    for name, host, arms in (
        ("without-host", 0, ("kvflow", "lru")),
        ("with-host", 131_072, ("kvflow", "hicache-write-through")),
    ):
        cache = _cache(scale, 40_960, host)
        count = scale.at_once(64)
        play = _play(
            scale,
            f"no-reuse-{name}",
            (1024, 256, 64),
            cache,
            agents={"agents": 4, "rounds": 1},
            load={"workflows": count, "concurrency": max(2, count // 8), "teams": 1_000_000},
            repeats=3,
            warm_up=0,
        )
        yield Bench("e", name, scale.models[0], arms, cache, 16, (play,))


def _lower_tiers(scale: Scale) -> Iterator[Bench]:
    """The device holds two calls; so every prefix is further down when its agent is called."""
    arms = ("kvflow", "hicache-write-through", "limit", "hicache-write-back")
    for name, host, storage, wanted in (
        ("host-only", 131_072, False, arms),
        ("storage-only", 14_336, True, arms[:2]),
    ):
        cache = {**_cache(scale, 12_288, host), "storage": storage}
        play = _play(
            scale,
            name,
            (4096, 32, 32),
            cache,
            agents={"agents": 10, "rounds": 3},
            repeats=3,
        )
        note = _STORAGE_NOTE if storage else ""
        yield Bench("f", name, scale.models[0], wanted, cache, 8, (play,), note)


def _cache(scale: Scale, device: int, host: int) -> dict[str, Any]:
    return {
        "device_tokens": scale.cached(device),
        "host_tokens": scale.cached(host),
        "page_tokens": scale.page_tokens,
    }


def _play(
    scale: Scale,
    name: str,
    lengths: tuple[int, int, int],
    cache: Mapping[str, Any],
    *,
    agents: Mapping[str, Any],
    repeats: int,
    load: Mapping[str, Any] | None = None,
    shared: int = 0,
    warm_up: int = 1,
) -> Play:
    fixed, dynamic, output = lengths
    scenario = parse_scenario(
        {
            "name": name,
            "prompts": {
                "fixed_tokens": scale.cached(fixed),
                "shared_tokens": scale.cached(shared),
                "dynamic_tokens": scale.short(dynamic),
                "output_tokens": scale.short(output),
            },
            "agents": dict(agents),
            "load": dict(load or {}),
            "cache": dict(cache),
            "warm_up_rounds": warm_up,
        }
    )
    return Play(scenario, min(repeats, scale.most_repeats))


def _at(scale: Scale, bench: Bench) -> Bench:
    """What of a bench is run at this scale."""
    return replace(
        bench,
        arms=tuple(arm for arm in bench.arms if arm in scale.arms),
        plays=bench.plays[: scale.plays],
    )
