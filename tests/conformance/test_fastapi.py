"""FastAPI applications behind circuits, called through real HTTP."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import AsyncGenerator, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from socket import socket
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")
pytest.importorskip("uvicorn")

import httpx
import uvicorn
from anyio import to_thread
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse

from fluxgate import AsyncCircuitBreaker, Bus, CallNotPermittedError, CircuitBreaker, FailureStreak, Never, TypeOf
from fluxgate.events import CallEnded, CallStarted
from fluxgate.testing import EventRecorder, VirtualClock
from tests.conformance.service import Answer, Service


@contextmanager
def serving(app: FastAPI) -> Generator[str, None, None]:
    """Serve an application on a free port of loopback; its address."""
    with socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        config = uvicorn.Config(app, log_config=None, lifespan="off", ws="none", timeout_graceful_shutdown=5)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)


def application() -> FastAPI:
    """An application that tells its clients when to come back."""
    app = FastAPI()

    @app.exception_handler(CallNotPermittedError)
    async def unavailable(request: Request, error: CallNotPermittedError) -> JSONResponse:
        headers = {} if error.retry_after is None else {"Retry-After": str(math.ceil(error.retry_after))}
        return JSONResponse({"detail": error.message, "circuit": error.circuit_name}, 503, headers)

    @app.exception_handler(httpx.HTTPError)
    @app.exception_handler(ConnectionError)
    async def bad_gateway(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 502)

    return app


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_a_route_answers_503_with_retry_after_while_open(
    service: Service, clock: VirtualClock, bus: Bus, colour: str
) -> None:
    """While the upstream's circuit is open, a decorated route answers 503 and says when to come back."""
    app = application()
    if colour == "sync":
        cb = CircuitBreaker("upstream", tripper=FailureStreak(3), permit=lambda elapsed: True, clock=clock, bus=bus)

        @app.get("/items/{item}")
        @cb
        def read(item: int, upper: bool = False) -> Any:
            with httpx.Client(base_url=service.url) as client:
                return {"item": item, "upper": upper, **client.get("/up").raise_for_status().json()}

    else:
        async_cb = AsyncCircuitBreaker(
            "upstream", tripper=FailureStreak(3), permit=lambda elapsed: True, clock=clock, bus=bus
        )

        @app.get("/items/{item}")
        @async_cb
        async def read_async(item: int, upper: bool = False) -> Any:
            async with httpx.AsyncClient(base_url=service.url) as client:
                response = await client.get("/up")
                return {"item": item, "upper": upper, **response.raise_for_status().json()}

    with serving(app) as url, httpx.Client(base_url=url) as browser:
        assert browser.get("/items/7?upper=1").json() == {"item": 7, "upper": True}
        assert browser.get("/items/seven").status_code == 422, "the signature is the function's own"

        service.default = Answer(503)
        assert [browser.get("/items/7").status_code for _ in range(3)] == [502] * 3
        clock.advance(12.5)
        refused = browser.get("/items/7")
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "48")
        assert refused.json() == {
            "detail": "circuit 'upstream' is open: 3 failures in a row (limit 3); retry after 47.5 s",
            "circuit": "upstream",
        }
        assert len(service.paths) == 4

        service.default = Answer()
        clock.advance(47.5)
        assert browser.get("/items/7").status_code == 200


def test_a_route_without_a_promise(service: Service, clock: VirtualClock, bus: Bus) -> None:
    """Where only a person can close the circuit, the 503 names no time."""
    cb = CircuitBreaker("upstream", tripper=FailureStreak(1), retry=Never(), clock=clock, bus=bus)
    app = application()

    @app.get("/")
    @cb
    def read() -> Any:
        return {}

    cb.force_open()
    with serving(app) as url:
        refused = httpx.get(url)
    assert refused.status_code == 503
    assert "Retry-After" not in refused.headers
    assert refused.json()["detail"] == "circuit 'upstream' is forced open: forced open by hand"


class Ended:
    """A listener with which a test waits for outcomes: a dependency is left after the answer is sent."""

    events = (CallEnded,)

    def __init__(self) -> None:
        self.outcomes: list[str] = []
        self._changed = threading.Condition()

    def __call__(self, event: CallEnded) -> None:
        with self._changed:
            self.outcomes.append(type(event).__name__)
            self._changed.notify_all()

    def wait_for(self, count: int) -> list[str]:
        """The outcomes, once there are so many."""
        with self._changed:
            self._changed.wait_for(lambda: len(self.outcomes) >= count, 10)
            return list(self.outcomes)


def test_a_dependency_that_is_entered_in_one_thread_and_left_in_another(clock: VirtualClock, bus: Bus) -> None:
    """`with cb:` in a generator dependency protects the route though its two halves run in different threads."""
    ended = Ended()
    cb = CircuitBreaker("database", tripper=FailureStreak(2), clock=clock, bus=bus, listeners=[ended])
    threads: list[tuple[str, int]] = []
    release = threading.Event()

    def session() -> Generator[None, None, None]:
        with cb:
            threads.append(("entered", threading.get_ident()))
            try:
                yield
            finally:
                threads.append(("left", threading.get_ident()))
                release.set()

    app = application()

    @app.get("/rows")
    async def rows(fail: bool = False, session: None = Depends(session)) -> list[int]:
        # occupy the worker that entered, so that another one must leave
        release.clear()
        occupied = threading.Event()

        def occupy() -> None:
            occupied.set()
            release.wait(10)

        tasks.append(asyncio.create_task(to_thread.run_sync(occupy)))
        async with asyncio.timeout(10):
            while not occupied.is_set():
                await asyncio.sleep(0)
        if fail:
            raise ConnectionResetError("database gone")
        return [1, 2]

    tasks: list[asyncio.Task[None]] = []
    with serving(app) as url, httpx.Client(base_url=url) as browser:
        assert browser.get("/rows").json() == [1, 2]
        assert ended.wait_for(1) == ["CallSucceeded"]
        for count in (2, 3):
            assert browser.get("/rows?fail=1").status_code == 502
            assert ended.wait_for(count) == ["CallSucceeded", *["CallFailed"] * (count - 1)]
        assert browser.get("/rows").status_code == 503
    assert [step for step, _ in threads] == ["entered", "left"] * 3
    assert threads[0][1] != threads[1][1]
    metrics = cb.info().metrics
    assert (metrics.total_count, metrics.failure_count) == (3, 2)


def test_overlapping_requests_each_settle_their_own_call(clock: VirtualClock, bus: Bus) -> None:
    """Eight requests that are all inside one dependency at once end in as many outcomes, each of its own call."""
    ended = Ended()
    recorder = EventRecorder(CallStarted, CallEnded)
    cb = CircuitBreaker("database", clock=clock, bus=bus, listeners=[recorder, ended])

    def session() -> Generator[None, None, None]:
        with cb:
            yield

    app = application()
    inside = asyncio.Barrier(8)

    @app.get("/rows/{row}")
    async def rows(row: int, session: None = Depends(session)) -> int:
        await asyncio.wait_for(inside.wait(), 10)
        if row % 2:
            raise ConnectionResetError("database gone")
        return row

    with serving(app) as url, httpx.Client(base_url=url) as browser, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda row: browser.get(f"/rows/{row}").status_code, range(8)))
        outcomes = ended.wait_for(8)
    assert answers == [200, 502] * 4
    assert sorted(outcomes) == ["CallFailed"] * 4 + ["CallSucceeded"] * 4
    begun = [event.call_id for event in recorder.of(CallStarted)]
    settled = [event.call_id for event in recorder.of(CallEnded)]
    assert len(set(begun)) == 8
    assert sorted(begun) == sorted(settled)
    assert not any(event.stale for event in recorder.of(CallEnded))


def test_an_answer_of_4xx_from_a_route_is_not_the_dependency_s_fault(clock: VirtualClock, bus: Bus) -> None:
    """An HTTPException passes through a dependency's circuit uncounted where the tracker leaves it out."""
    ended = Ended()
    cb = AsyncCircuitBreaker(
        "database",
        tracker=~TypeOf(HTTPException),
        tripper=FailureStreak(1),
        clock=clock,
        bus=bus,
        listeners=[ended],
    )

    async def session() -> AsyncGenerator[None, None]:
        async with cb:
            yield

    app = application()

    @app.get("/rows/{row}")
    async def rows(row: int, session: None = Depends(session)) -> int:
        if row > 1:
            raise HTTPException(404, "no such row")
        if row == 1:
            raise ConnectionResetError("database gone")
        return row

    with serving(app) as url, httpx.Client(base_url=url) as browser:
        statuses: list[int] = []
        for count, row in enumerate((0, 2, 0, 1), start=1):
            statuses.append(browser.get(f"/rows/{row}").status_code)
            ended.wait_for(count)
        statuses.append(browser.get("/rows/0").status_code)
    assert statuses == [200, 404, 200, 502, 503]
    assert ended.outcomes == ["CallSucceeded", "CallIgnored", "CallSucceeded", "CallFailed"]
