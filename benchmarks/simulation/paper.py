"""The paper's configurations, simulated, next to its published figures.

``python -m benchmarks.simulation.paper``. A published figure (arXiv 2507.07400: v1, and the
NeurIPS'25 camera-ready) was measured on GPUs, with the authors' system and SGLang 0.4.4; ours next
to it is a simulation of this implementation and of SGLang 0.5.23, whose HiCache computes a layer
while it loads the next. So equal figures are not expected, and a smaller gain over HiCache is.

HiCache copied page by page then, and how fast that was the paper does not say; so each
configuration is simulated with the link at the speed it can reach and with slower ones, which say
what the copies would have had to be like for a figure to come out as published.

The method is theirs: ten agents, each one's fixed prompt warmed, then ten runs of the workflow with
new suffixes; for many workflows, each with agents of its own, all at once. The device pool is what
``--mem-fraction-static 0.88`` leaves next to the weights, SGLang 0.4.4's default; the host pool
holds everything. What the paper leaves open, chosen here: with branches, every stage but the first
has that many alternatives; PEER is 32 workflows at once, whose four agents have prompts of 2,048
tokens of which half is shared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import geometric_mean
from typing import Any, Final

from benchmarks.simulation.runs import Case, arguments, ratio, run_all, with_link, write
from kvflow.simulator import EngineModel, PolicyName
from kvflow.simulator.costs import CostModel
from kvflow.simulator.presets import cost_model, device_tokens
from kvflow.workload import Scenario, parse_scenario

__all__ = ["PUBLISHED", "SETUPS", "Setup", "compared"]

MEM_FRACTION: Final = 0.88
SPEEDS: Final[Mapping[str, float | None]] = {"full": None, "4 GB/s": 4e9, "1 GB/s": 1e9}
"""Of the link between host and device; None: the preset's."""

RUNS: Final = 10
AGENTS: Final = 10
POLICIES: Final[tuple[PolicyName, ...]] = ("lru", "hicache-lru", "kvflow-eviction", "kvflow")


@dataclass(frozen=True, slots=True)
class Setup:
    """One of the paper's configurations. Lengths in tokens; ``at_once``: workflows."""

    gpu: str
    model: str
    fixed: int
    dynamic: int
    output: int
    branches: int = 1
    at_once: int = 1
    kind: str = "single"

    @property
    def name(self) -> str:
        parts = [self.kind, self.gpu, self.fixed, self.dynamic, self.output]
        return "-".join(map(str, [*parts, f"b{self.branches}", f"x{self.at_once}"]))

    def scenario(self, seed: int, runs: int) -> Scenario:
        agents: dict[str, Any] = {"agents": AGENTS, "rounds": runs + 1}
        load: dict[str, Any] = {"workflows": 1}
        prompts: dict[str, Any] = {
            **{"fixed_tokens": self.fixed, "dynamic_tokens": self.dynamic},
            "output_tokens": self.output,
        }
        if self.branches > 1:
            agents |= {
                **{"pattern": "branch", "branches": self.branches},
                "agents": 1 + (AGENTS - 1) * self.branches,
            }
        if self.kind == "many":
            # Each with a team of its own prompts.
            agents["rounds"] = 1
            load = {
                "workflows": self.at_once * runs,
                "concurrency": self.at_once,
                "clients": 1,
                "teams": self.at_once,
            }
        if self.kind == "peer":
            prompts["shared_tokens"] = self.fixed // 2
            agents = {"agents": 4, "rounds": 1}
            load = {"workflows": self.at_once * runs, "concurrency": self.at_once}
        device = device_tokens(self.gpu, self.model, mem_fraction=MEM_FRACTION)
        return parse_scenario(
            {
                "name": self.name,
                "seed": seed,
                "prompts": prompts,
                "agents": agents,
                "load": load,
                "cache": {"device_tokens": device, "host_tokens": 50 * device},
                "warm_up_rounds": 1,
            }
        )


_GRID: Final = tuple((dynamic, output) for dynamic in (32, 256) for output in (32, 256))
_SHAPES: Final = (("a10g", "llama-3.1-8b"), ("h100", "qwen2.5-32b"))

SETUPS: Final = (
    *(
        Setup(gpu, model, fixed, dynamic, output, branches)
        for gpu, model in _SHAPES
        for fixed in (4096, 8192)
        for branches in (1, 2)
        for dynamic, output in _GRID
    ),
    *(
        Setup("h100", "qwen2.5-32b", fixed, 256, 256, at_once=10, kind="many")
        for fixed in (512, 1024)
    ),
    Setup("a10g", "llama-3.1-8b", 512, 256, 256, at_once=128, kind="many"),
    Setup("a10g", "llama-3.1-8b", 1024, 256, 256, at_once=64, kind="many"),
    Setup("h100", "qwen2.5-32b", 2048, 256, 256, at_once=32, kind="peer"),
)


@dataclass(frozen=True, slots=True)
class Published:
    """A figure of the paper's and the setups whose geometric mean stands next to it."""

    what: str
    figure: float
    over: PolicyName
    by: PolicyName
    source: str
    gpu: str
    kind: str = "single"
    fixed: int | None = None
    dynamic: int | None = None
    output: int | None = None

    def covers(self, setup: Setup) -> bool:
        return (
            (self.gpu, self.kind) == (setup.gpu, setup.kind)
            and all(
                wanted is None or wanted == given
                for wanted, given in (
                    (self.fixed, setup.fixed),
                    (self.dynamic, setup.dynamic),
                    (self.output, setup.output),
                )
            )
            and (self.dynamic is None or setup.branches == 1)
        )


_V1: Final = "v1"
_CR: Final = "camera-ready"
_BEST: Final = "both, the best of several"

PUBLISHED: Final = (
    Published("8192/32/32", 1.83, "hicache-lru", "kvflow", _V1, "a10g", "single", 8192, 32, 32),
    Published("8192/32/32", 2.91, "lru", "kvflow", _V1, "a10g", "single", 8192, 32, 32),
    Published("mean, fixed 8192", 1.48, "hicache-lru", "kvflow", _V1, "a10g", fixed=8192),
    Published("mean, fixed 4096", 1.28, "hicache-lru", "kvflow", _V1, "a10g", fixed=4096),
    Published("mean, fixed 8192", 1.30, "hicache-lru", "kvflow", _CR, "h100", fixed=8192),
    Published("mean, fixed 4096", 1.22, "hicache-lru", "kvflow", _CR, "h100", fixed=4096),
    Published("4096/32/32", 1.24, "hicache-lru", "kvflow", _CR, "h100", "single", 4096, 32, 32),
    Published("4096/32/32", 1.42, "lru", "kvflow", _CR, "h100", "single", 4096, 32, 32),
    Published("ablation: eviction alone", 1.11, "hicache-lru", "kvflow-eviction", _CR, "h100"),
    Published("ablation: with prefetch", 1.29, "hicache-lru", "kvflow", _CR, "h100"),
    Published("10 workflows, 512", 1.25, "lru", "kvflow", _BEST, "h100", "many", 512),
    Published("10 workflows, 1024", 1.25, "lru", "kvflow", _BEST, "h100", "many", 1024),
    Published("128 workflows, 512", 2.19, "hicache-lru", "kvflow", _BEST, "a10g", "many", 512),
    Published("64 workflows, 1024", 2.19, "hicache-lru", "kvflow", _BEST, "a10g", "many", 1024),
    Published("PEER", 1.12, "lru", "kvflow", "both", "h100", "peer"),
    Published("PEER", 1.08, "hicache-lru", "kvflow", "both", "h100", "peer"),
)


def compared(rows: Sequence[Mapping[str, Any]], setups: Sequence[Setup]) -> list[dict[str, Any]]:
    """The published figures, each with the simulated ones by speed of the link.

    A simulated figure is the geometric mean over the setups it stands for.
    """
    found = []
    for one in PUBLISHED:
        covered = [setup.name for setup in setups if one.covers(setup)]
        simulated = {}
        for speed in SPEEDS:
            ratios = [
                value
                for name in covered
                if (value := ratio(_of(rows, name, speed), one.by, one.over)) is not None
            ]
            if ratios:
                simulated[speed] = {
                    **{"mean": geometric_mean(ratios), "least": min(ratios)},
                    "most": max(ratios),
                }
        found.append(
            {
                "what": one.what,
                **{"gpu": one.gpu, "by": one.by, "over": one.over, "source": one.source},
                **{"published": one.figure, "simulated": simulated, "setups": len(covered)},
            }
        )
    return found


def _of(rows: Sequence[Mapping[str, Any]], name: str, speed: str) -> list[Mapping[str, Any]]:
    return [row for row in rows if (row["setup"], row["link"]) == (name, speed)]


def cases(setups: Sequence[Setup], seed: int, runs: int) -> Iterator[Case]:
    for setup in setups:
        chunk = 8192 if setup.gpu == "h100" else 4096
        scenario = setup.scenario(seed, runs)
        for speed, bytes_per_s in SPEEDS.items():
            for policy in POLICIES:
                yield Case(
                    {"setup": setup.name, "link": speed},
                    scenario,
                    costs_of(setup, bytes_per_s),
                    policy,
                    EngineModel(chunked_prefill_tokens=chunk),
                )


def costs_of(setup: Setup, bytes_per_s: float | None = None) -> CostModel:
    costs = cost_model(setup.gpu, setup.model)
    return costs if bytes_per_s is None else with_link(costs, bytes_per_s)


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(__doc__, "paper").parse_args(argv)
    runs = 2 if options.quick else RUNS
    rows = run_all(cases(SETUPS, options.seed, runs), options.jobs)
    write(
        options.output,
        settings={
            **{"runs": runs, "agents": AGENTS, "mem_fraction": MEM_FRACTION},
            **{"seed": options.seed, "links": dict(SPEEDS)},
        },
        scenarios={setup.name: setup.scenario(options.seed, runs) for setup in SETUPS},
        costs={setup.gpu: costs_of(setup) for setup in SETUPS}.values(),
        compared=compared(rows, SETUPS),
        rows=rows,
    )


if __name__ == "__main__":
    main()
