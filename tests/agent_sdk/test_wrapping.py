"""Each kind of function is a step from its start to its end, and otherwise what it was."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from kvflow.agent_sdk.engine_urls import EngineUrls
from kvflow.agent_sdk.run import StepScope
from kvflow.agent_sdk.step import ActiveStep, Step, current_step
from kvflow.agent_sdk.wrapping import wrap_agent
from kvflow.errors import InvalidInputError


class Log:
    """Stands in for the run: opens scopes and notes what happens to them."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def agent(self, agent_id: str) -> Callable[[Callable], Callable]:
        def open_step() -> StepScope:
            step = Step("w", agent_id, "c", f"{agent_id}-{len(self.lines)}")
            self.lines.append(f"start {agent_id}")
            return StepScope(step, ActiveStep(step, EngineUrls(), None), self)

        return lambda function: wrap_agent(agent_id, function, open_step)

    def step_finished(self, step: Step) -> None:
        self.lines.append(f"finish {step.agent_id}")

    def now(self) -> None:
        step = current_step()
        self.lines.append(f"in {step.agent_id if step else None}")


@pytest.fixture
def log() -> Iterator[Log]:
    log = Log()
    yield log
    assert current_step() is None


STEP = ["start a", "in a", "finish a"]


class TestFunctions:
    def test_result_and_order(self, log: Log) -> None:
        @log.agent("a")
        def agent(x: int, *, y: int = 2) -> int:
            """Doc."""
            log.now()
            return x * y

        assert agent(3) == 6
        assert log.lines == STEP
        assert agent.__name__ == "agent"
        assert agent.__doc__ == "Doc."
        assert str(inspect.signature(agent)) == "(x: 'int', *, y: 'int' = 2) -> 'int'"

    def test_exceptions_pass_through(self, log: Log) -> None:
        error = KeyError("mine")

        @log.agent("a")
        def agent() -> None:
            log.now()
            raise error

        with pytest.raises(KeyError) as caught:
            agent()
        assert caught.value is error
        assert log.lines == STEP

    def test_nested_agents(self, log: Log) -> None:
        @log.agent("inner")
        def inner() -> None:
            log.now()

        @log.agent("a")
        def outer() -> None:
            inner()
            log.now()

        outer()
        assert log.lines == [
            "start a", "start inner", "in inner", "finish inner", "in a", "finish a",
        ]  # fmt: skip

    def test_recursion(self, log: Log) -> None:
        @log.agent("a")
        def agent(depth: int) -> int:
            return 0 if depth == 0 else 1 + agent(depth - 1)

        assert agent(3) == 3
        assert log.lines == ["start a"] * 4 + ["finish a"] * 4

    def test_methods_and_their_kin(self, log: Log) -> None:
        class Team:
            factor = 10

            @log.agent("a")
            def method(self, x: int) -> int:
                return self.factor * x

            @staticmethod
            @log.agent("a")
            def static(x: int) -> int:
                return x

            @classmethod
            @log.agent("a")
            def of_class(cls, x: int) -> int:
                return cls.factor + x

        assert (Team().method(2), Team.static(2), Team.of_class(2)) == (20, 2, 12)
        assert log.lines == ["start a", "finish a"] * 3

    def test_callable_objects_and_partials(self, log: Log) -> None:
        class Sync:
            def __call__(self, x: int) -> int:
                log.now()
                return x

        class Async:
            async def __call__(self, x: int) -> int:
                log.now()
                return x

        async def add(x: int, y: int) -> int:
            log.now()
            return x + y

        assert log.agent("a")(Sync())(1) == 1
        assert asyncio.run(log.agent("a")(Async())(2)) == 2
        assert asyncio.run(log.agent("a")(functools.partial(add, 1))(2)) == 3
        assert log.lines == STEP * 3

    @pytest.mark.parametrize("wrong", [staticmethod(len), classmethod(len), int, 3, None])
    def test_other_things_are_refused(self, log: Log, wrong: object) -> None:
        with pytest.raises(InvalidInputError, match=r"^@agent\('a'\): "):
            log.agent("a")(wrong)


class TestCoroutines:
    async def test_result(self, log: Log) -> None:
        @log.agent("a")
        async def agent(x: int) -> int:
            await asyncio.sleep(0)
            log.now()
            return x

        assert inspect.iscoroutinefunction(agent)
        coroutine = agent(1)
        assert log.lines == []
        assert await coroutine == 1
        assert log.lines == STEP

    async def test_cancellation_finishes_the_step(self, log: Log) -> None:
        @log.agent("a")
        async def agent() -> None:
            log.now()
            await asyncio.Event().wait()

        task = asyncio.create_task(agent())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert log.lines == STEP

    async def test_parallel_steps_stay_apart(self, log: Log) -> None:
        seen: dict[str, set[str]] = {}

        async def body() -> None:
            for _ in range(3):
                await asyncio.sleep(0)
                step = current_step()
                assert step is not None
                seen.setdefault(step.step_id, set()).add(step.agent_id)

        await asyncio.gather(*(log.agent(name)(body)() for name in "abab"))
        assert sorted(map(sorted, seen.values())) == [["a"], ["a"], ["b"], ["b"]]

    async def test_a_coroutine_from_a_plain_function_is_part_of_the_step(self, log: Log) -> None:
        @log.agent("a")
        def agent():
            async def rest() -> int:
                await asyncio.sleep(0)
                log.now()
                return 1

            return rest()

        assert await agent() == 1
        assert log.lines == STEP

    async def test_a_coroutine_nobody_awaits_does_not_leave_the_step_open(self, log: Log) -> None:
        @log.agent("a")
        def agent():
            return asyncio.sleep(0)

        coroutine = agent()
        coroutine.close()
        del coroutine
        gc.collect()
        assert log.lines == ["start a", "finish a"]

    def test_closed_from_elsewhere(self, log: Log) -> None:
        """Garbage collection closes a coroutine in whatever context it happens."""

        @log.agent("a")
        async def agent() -> None:
            log.now()
            await asyncio.sleep(0)

        coroutine = agent()
        import contextvars

        contextvars.copy_context().run(coroutine.send, None)
        coroutine.close()
        assert log.lines == STEP


class TestGenerators:
    def test_lasts_until_exhausted_and_is_current_only_inside(self, log: Log) -> None:
        @log.agent("a")
        def agent(n: int) -> Iterator[int]:
            for i in range(n):
                log.now()
                yield i

        assert inspect.isgeneratorfunction(agent)
        generator = agent(2)
        assert log.lines == []
        for _ in generator:
            log.now()
        assert log.lines == ["start a", "in a", "in None", "in a", "in None", "finish a"]

    def test_send_throw_and_return(self, log: Log) -> None:
        @log.agent("a")
        def agent() -> Iterator[str]:
            got = yield "first"
            try:
                yield got
            except ValueError as error:
                log.now()
                yield str(error)
            return "end"

        generator = agent()
        assert next(generator) == "first"
        assert generator.send("sent") == "sent"
        assert generator.throw(ValueError("thrown")) == "thrown"
        with pytest.raises(StopIteration) as stop:
            next(generator)
        assert stop.value.value == "end"
        assert log.lines == STEP

    def test_closing_early(self, log: Log) -> None:
        @log.agent("a")
        def agent() -> Iterator[int]:
            try:
                yield 1
            finally:
                log.now()

        generator = agent()
        next(generator)
        generator.close()
        assert log.lines == STEP

    def test_exceptions_pass_through(self, log: Log) -> None:
        @log.agent("a")
        def agent() -> Iterator[int]:
            log.now()
            yield 1
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            list(agent())
        assert log.lines == STEP

    def test_a_generator_from_a_plain_function(self, log: Log) -> None:
        @log.agent("a")
        def agent():
            return (log.now() for _ in range(1))

        assert list(agent()) == [None]
        assert log.lines == STEP


class TestAsyncGenerators:
    async def test_lasts_until_exhausted_and_is_current_only_inside(self, log: Log) -> None:
        @log.agent("a")
        async def agent(n: int) -> AsyncIterator[int]:
            for i in range(n):
                await asyncio.sleep(0)
                log.now()
                yield i

        assert inspect.isasyncgenfunction(agent)
        async for _ in agent(2):
            log.now()
        assert log.lines == ["start a", "in a", "in None", "in a", "in None", "finish a"]

    async def test_asend_and_athrow(self, log: Log) -> None:
        @log.agent("a")
        async def agent() -> AsyncIterator[str]:
            got = yield "first"
            try:
                yield got
            except ValueError as error:
                log.now()
                yield str(error)

        generator = agent()
        assert await anext(generator) == "first"
        assert await generator.asend("sent") == "sent"
        assert await generator.athrow(ValueError("thrown")) == "thrown"
        with pytest.raises(StopAsyncIteration):
            await anext(generator)
        assert log.lines == STEP

    async def test_closing_early(self, log: Log) -> None:
        @log.agent("a")
        async def agent() -> AsyncIterator[int]:
            try:
                yield 1
            finally:
                await asyncio.sleep(0)
                log.now()

        generator = agent()
        await anext(generator)
        await generator.aclose()
        assert log.lines == STEP

    async def test_exceptions_pass_through(self, log: Log) -> None:
        @log.agent("a")
        async def agent() -> AsyncIterator[int]:
            log.now()
            yield 1
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            _ = [i async for i in agent()]
        assert log.lines == STEP

    async def test_cancelled_while_it_works(self, log: Log) -> None:
        @log.agent("a")
        async def agent() -> AsyncIterator[int]:
            log.now()
            await asyncio.Event().wait()
            yield 1

        async def consume() -> None:
            async for _ in agent():
                pass

        task = asyncio.create_task(consume())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert log.lines == STEP

    async def test_an_async_generator_from_a_plain_function(self, log: Log) -> None:
        async def items() -> AsyncIterator[int]:
            log.now()
            yield 1

        @log.agent("a")
        def agent():
            return items()

        assert [i async for i in agent()] == [1]
        assert log.lines == STEP
