"""How long a service with many live workflows takes to start after kill -9.

Fills a database by way of the store, kills the process that did so (so that the journal is as a
crash leaves it), and times a new ``kvflow serve``: until ``/ready`` answers, and until an engine
that connects then has been told of every workflow.

``python -m benchmarks.service.startup`` writes ``benchmarks/results/service_startup.json``.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import random
import signal
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import httpx2

from benchmarks.environment import write_result
from benchmarks.service.process import service_process
from kvflow.graph import Agent, AgentStepGraph, Edge, WorkflowState
from kvflow.protocol import StepEvent
from kvflow.server.store import WorkflowRecord
from kvflow.server.store.sqlite import SQLiteStore

__all__ = ["main"]

_RESULT: Final = Path(__file__).parents[1] / "results" / "service_startup.json"
_TARGET_S: Final = 5.0
_AT_ONCE: Final = 500


def _graph(agents: int, number: int) -> AgentStepGraph:
    names = [f"agent-{number}-{i}" for i in range(agents)]
    return AgentStepGraph(
        [Agent(name, "any") for name in names],
        [Edge(a, b) for a, b in zip(names, (*names[1:], names[0]), strict=True)],
        [names[0]],
    )


async def _fill(path: Path, workflows: int, agents: int, graphs: int, events: int) -> None:
    """Every workflow is created and takes some events, in writes of their own; then kill -9."""
    store = SQLiteStore(path, workflows)
    rng = random.Random(1)
    declared = [_graph(agents, number) for number in range(graphs)]

    async def one(number: int) -> None:
        graph = declared[number % graphs]
        record = WorkflowRecord(
            workflow_id=f"workflow-{number}",
            client_id=f"client-{number % 100}",
            name=None,
            ttl_s=3600.0,
            graph=graph,
            state=WorkflowState(graph),
            expires_at_s=store.now_s() + 3600,
        )
        await store.insert(record)
        for step in range(rng.randrange(2 * events + 1)):
            state = record.state.copy()
            agent_id = graph.agent_ids[step // 2 % agents]
            kind: Any = "step_finished" if step % 2 else "step_started"
            change = state.finish if step % 2 else state.start
            change(agent_id, f"{number}-{step // 2}")
            record = replace(record, state=state)
            event = StepEvent(type=kind, agent_id=agent_id, step_id=f"{number}-{step // 2}")
            await store.update(record, [event])

    for start in range(0, workflows, _AT_ONCE):
        await asyncio.gather(*map(one, range(start, min(workflows, start + _AT_ONCE))))
    os.kill(os.getpid(), signal.SIGKILL)


def _fill_in_process(*arguments: Any) -> None:
    asyncio.run(_fill(*arguments))


def _told(url: str) -> int:
    """Connect as an engine does; of how many workflows it is told in its first state."""
    told = 0
    with (
        httpx2.Client(base_url=url, timeout=60) as http,
        http.stream("GET", "/v1/engines/stream") as response,
    ):
        for line in response.iter_lines():
            if line.startswith("data: "):
                told += line.count('"workflow_id":')
                if '"more":false' in line.replace(" ", ""):
                    break
    return told


def _rss_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def measure(workflows: int, agents: int, graphs: int, events: int, repeats: int) -> dict[str, Any]:
    """One setting: fill once, start several times, each after a kill -9 of the one before."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "workflows.db"
        began_s = time.perf_counter()
        filling = multiprocessing.get_context("spawn").Process(
            target=_fill_in_process, args=(path, workflows, agents, graphs, events)
        )
        filling.start()
        filling.join()
        filled_s = time.perf_counter() - began_s
        size = sum(one.stat().st_size for one in Path(folder).iterdir())
        ready_s, told_s, rss = [], [], []
        service = service_process(Path(folder) / "log", "--database", str(path))
        for _ in range(repeats):
            ready_s.append(service.start())
            try:
                rss.append(_rss_bytes(service.pid))
                began_s = time.perf_counter()
                told = _told(service.url)
                told_s.append(time.perf_counter() - began_s)
            finally:
                service.kill()
            if told != workflows:
                raise RuntimeError(f"an engine was told of {told} workflows, not of {workflows}")
    return {
        "workflows": workflows,
        "agents": agents,
        "graphs": graphs,
        "events_per_workflow": events,
        "filled_s": filled_s,
        "database_bytes": size,
        "ready_s": ready_s,
        "median_ready_s": statistics.median(ready_s),
        "told_s": told_s,
        "median_told_s": statistics.median(told_s),
        "resident_bytes_when_ready": max(rss),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workflows", type=int, default=100_000)
    parser.add_argument("--events", type=int, default=4, help="per workflow, on average")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=_RESULT)
    options = parser.parse_args()
    settings = [("no workflows", 0, 10, 1), ("10 agents, 20 graphs", options.workflows, 10, 20)]
    settings.append(("50 agents, a graph each", options.workflows, 50, options.workflows))
    runs = []
    for name, workflows, agents, graphs in settings:
        run = measure(workflows, agents, graphs, options.events, options.repeats)
        runs.append({"name": name, **run})
        print(
            f"{name:25} ready {run['median_ready_s']:.2f} s   told {run['median_told_s']:.2f} s   "
            f"{run['database_bytes'] / 1e6:.0f} MB, "
            f"{run['resident_bytes_when_ready'] / 1e6:.0f} MB resident, "
            f"filled in {run['filled_s']:.0f} s",
            flush=True,
        )
    write_result(options.output, {"target_ready_s": _TARGET_S, "runs": runs})


if __name__ == "__main__":
    main()
