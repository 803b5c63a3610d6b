"""A policy a service: what counts as a failure, when that trips, how long to wait; on real HTTP."""

from __future__ import annotations

from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import pytest

pytest.importorskip("httpx")

import httpx

from fluxgate import (
    Backoff,
    Bus,
    CallNotPermittedError,
    CircuitBreaker,
    Closed,
    Cooldown,
    CountWindow,
    Custom,
    FailureRate,
    FailureStreak,
    HalfOpened,
    MinRequests,
    Never,
    RetryAfter,
    Returned,
    SlowRate,
    State,
    TimeWindow,
    permits,
    trackers,
)
from fluxgate.events import CallFailed, CallIgnored, CallSucceeded, StateChanged
from fluxgate.testing import EventRecorder, VirtualClock
from tests.conformance.service import Answer, Service, refused_url

OK, NOT_FOUND, BROKEN, UNAVAILABLE = Answer(), Answer(404), Answer(500), Answer(503)


def is_server_fault(error: Exception) -> bool:
    """5xx and connection errors are the service's; 4xx are the caller's."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code >= 500
    return isinstance(error, httpx.TransportError)


def attempt(function: Callable[[], Any], times: int = 1) -> list[str]:
    """What each of the calls came to: ``ok`` or the name of its error's type."""
    outcomes: list[str] = []
    for _ in range(times):
        try:
            function()
        except Exception as error:
            outcomes.append(type(error).__name__)
        else:
            outcomes.append("ok")
    return outcomes


# -- trackers ---------------------------------------------------------------------------------------------------------


def test_a_custom_tracker_counts_5xx_and_connection_errors_but_not_4xx(service: Service, bus: Bus) -> None:
    """5xx, a cut or refused connection and a timeout are failures, 4xx are ignored, and all reach the caller."""
    recorder = EventRecorder(CallFailed, CallIgnored, CallSucceeded)
    cb = CircuitBreaker("orders", tracker=Custom(is_server_fault), bus=bus, listeners=[recorder])
    service.script.extend([OK, NOT_FOUND, Answer(429), BROKEN, UNAVAILABLE, Answer(drop=True), Answer(hang=True)])
    timeout = httpx.Timeout(10, read=0.1)
    with httpx.Client(base_url=service.url, timeout=timeout) as client:
        outcomes = attempt(lambda: cb.call(lambda: client.get("/orders").raise_for_status()), 7)
        outcomes += attempt(lambda: cb.call(client.get, refused_url()))
    statuses = ["HTTPStatusError"] * 4
    assert outcomes == ["ok", *statuses, "RemoteProtocolError", "ReadTimeout", "ConnectError"]
    metrics = cb.info().metrics
    assert (metrics.total_count, metrics.failure_count) == (6, 5)
    assert [event.error_type for event in recorder.of(CallFailed)] == [
        "httpx.HTTPStatusError",
        "httpx.HTTPStatusError",
        "httpx.RemoteProtocolError",
        "httpx.ReadTimeout",
        "httpx.ConnectError",
    ]
    assert len(recorder.of(CallIgnored)) == 2


def test_4xx_alone_never_trip(service: Service, bus: Bus) -> None:
    """A client that sends only bad requests does not open the circuit for the others."""
    service.default = NOT_FOUND
    cb = CircuitBreaker("orders", tracker=Custom(is_server_fault), tripper=FailureStreak(1), bus=bus)
    with httpx.Client(base_url=service.url) as client:
        attempt(cb(lambda: client.get("/orders").raise_for_status()), 30)
    assert cb.info().state == "closed"
    assert cb.info().metrics.total_count == 0


def test_a_type_tracker_with_an_exception_to_it(service: Service, bus: Bus) -> None:
    """`TypeOf(...) & ~TypeOf(...)` counts transport errors but not the pool's own timeout."""
    tracker = trackers.TypeOf(httpx.TransportError) & ~trackers.TypeOf(httpx.PoolTimeout)
    cb = CircuitBreaker("orders", tracker=tracker, bus=bus)
    service.script.append(Answer(drop=True))
    with httpx.Client(base_url=service.url) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            cb.call(client.get, "/orders")
    with pytest.raises(httpx.PoolTimeout), cb:
        raise httpx.PoolTimeout("no connection free")
    assert cb.info().metrics.failure_count == cb.info().metrics.total_count == 1


def test_a_result_predicate_judges_responses(service: Service, bus: Bus) -> None:
    """With `Returned` a 503 response that nobody raises is a failure, and the caller still gets the response."""
    tracker = trackers.All() | Returned(lambda response: response.status_code >= 500)
    cb = CircuitBreaker("search", tracker=tracker, tripper=MinRequests(4) & FailureRate(0.75), bus=bus)
    service.script.extend([OK, UNAVAILABLE, Answer(drop=True), UNAVAILABLE])
    with httpx.Client(base_url=service.url) as client:
        assert cb.call(client.get, "/search").status_code == 200
        assert cb.call(client.get, "/search").status_code == 503
        with pytest.raises(httpx.RemoteProtocolError):
            cb.call(client.get, "/search")
        assert cb.call(client.get, "/search").status_code == 503
        with pytest.raises(CallNotPermittedError) as refusal:
            cb.call(client.get, "/search")
    assert "3 of 4 calls" in str(refusal.value)


# -- trippers ---------------------------------------------------------------------------------------------------------


def test_one_rule_for_closed_and_another_for_half_open(service: Service, clock: VirtualClock, bus: Bus) -> None:
    """Closed it takes 60 % of at least 20 calls; half-open, 50 % of at least 5 probes, and less than that closes it."""
    tripper = (Closed() & MinRequests(20) & FailureRate(0.6)) | (HalfOpened() & MinRequests(5) & FailureRate(0.5))
    recorder = EventRecorder(StateChanged)
    cb = CircuitBreaker(
        "catalogue",
        tripper=tripper,
        retry=Cooldown(30),
        permit=permits.All(),
        clock=clock,
        bus=bus,
        listeners=[recorder],
    )
    with httpx.Client(base_url=service.url) as client:
        catalogue = cb(lambda: client.get("/catalogue").raise_for_status())

        service.script.extend([*[BROKEN] * 11, *[OK] * 9])
        attempt(catalogue, 20)
        assert cb.info().state == "closed", "11 of 20 are 55 %"
        service.script.extend([BROKEN] * 3)
        attempt(catalogue, 2)
        assert cb.info().state == "closed", "13 of 22 are 59.1 %"
        attempt(catalogue)
        assert cb.info().state == "open", "14 of 23 are 60.9 %"

        clock.advance(30)
        service.script.extend([BROKEN, BROKEN, OK, OK, BROKEN])
        assert "CallNotPermittedError" not in attempt(catalogue, 5)
        assert cb.info().state == "open", "3 of 5 probes failed"

        clock.advance(30)
        service.script.extend([BROKEN, BROKEN, OK, OK, OK])
        attempt(catalogue, 4)
        assert cb.info().state == "half_open", "4 probes are too few"
        attempt(catalogue)
        assert cb.info().state == "closed", "2 of 5 probes failed"

    opened, _, reopened, _, closed = recorder.of(StateChanged)
    assert opened.reason == "23 calls seen (20 needed) and failure rate 60.9 % (limit 60.0 %, 14 of 23 calls)"
    assert reopened.reason == "5 calls seen (5 needed) and failure rate 60.0 % (limit 50.0 %, 3 of 5 calls)"
    assert reopened.reopens == 1
    assert closed.reason == "5 calls seen (5 needed) and failure rate 40.0 % (limit 50.0 %, 2 of 5 calls)"


def test_a_slow_service_trips_without_one_failure(service: Service, clock: VirtualClock, bus: Bus) -> None:
    """`SlowRate` opens the circuit of a service that answers correctly but late."""
    service.default = Answer(during=lambda: clock.advance(3))
    cb = CircuitBreaker("reports", tripper=MinRequests(5) & SlowRate(0.5, threshold=2), clock=clock, bus=bus)
    with httpx.Client(base_url=service.url) as client:
        reports = cb(lambda: client.get("/reports").raise_for_status())
        assert attempt(reports, 6) == ["ok"] * 5 + ["CallNotPermittedError"]
    metrics = cb.info().metrics
    assert (metrics.failure_count, metrics.avg_duration) == (0, 3.0)


# -- policies ---------------------------------------------------------------------------------------------------------


def payment_policy() -> dict[str, Any]:
    """Conservative: money is involved, so a few failures suffice and recovery takes its time."""
    return {
        "window": TimeWindow(60),
        "tracker": Custom(is_server_fault),
        "tripper": FailureStreak(5) | (MinRequests(20) & FailureRate(0.4)),
        "retry": Backoff(10, multiplier=2, max_duration=300),
        "permit": permits.Random(0.2),
        "max_half_open_calls": 2,
    }


def inventory_policy() -> dict[str, Any]:
    """Aggressive: a stale stock figure is harmless, so try again soon and often."""
    return {
        "window": CountWindow(50),
        "tripper": (Closed() & MinRequests(20) & FailureRate(0.8)) | (HalfOpened() & FailureRate(0.8)),
        "retry": Cooldown(5, jitter_ratio=0.1),
        "permit": permits.All(),
    }


POLICIES = {"payment": payment_policy, "inventory": inventory_policy}


def make_breaker(service_name: str, policy: str, **more: Any) -> CircuitBreaker:
    """A breaker by the name of its policy.

    Raises:
        ValueError: there is no such policy.
    """
    try:
        rules = POLICIES[policy]()
    except KeyError:
        raise ValueError(f"unknown policy {policy!r}: choose from {', '.join(sorted(POLICIES))}") from None
    return CircuitBreaker(service_name, **(rules | more))


def test_a_factory_makes_breakers_by_policy_name() -> None:
    """An unknown policy is a `ValueError` that lists the known ones; a known one makes a breaker with its rules."""
    with pytest.raises(ValueError, match="unknown policy 'lenient': choose from inventory, payment"):
        make_breaker("orders", "lenient")
    cb = make_breaker("stripe", "payment", bus=Bus())
    assert (cb.name, cb.info().state) == ("stripe", "closed")


def test_two_services_each_under_its_policy(service: Service, clock: VirtualClock, bus: Bus) -> None:
    """Under the same faults payment opens after five and waits longer each time; inventory bears more, probes soon."""
    recorder = EventRecorder(StateChanged)
    bus.attach(recorder)
    payment = make_breaker("stripe", "payment", permit=permits.All(), clock=clock, bus=bus)
    inventory = make_breaker("warehouse", "inventory", clock=clock, bus=bus)
    service.default = UNAVAILABLE
    with httpx.Client(base_url=service.url) as client:

        def pay() -> Any:
            return payment.call(lambda: client.post("/charges").raise_for_status())

        def stock() -> Any:
            return inventory.call(lambda: client.get("/stock").raise_for_status())

        assert attempt(pay, 7) == ["HTTPStatusError"] * 5 + ["CallNotPermittedError"] * 2
        assert attempt(stock, 19) == ["HTTPStatusError"] * 19
        assert inventory.info().state == "closed"
        attempt(stock)
        assert inventory.info().state == "open"

        clock.advance(10)
        attempt(pay, 5)
        attempt(stock)
        assert (payment.info().state, payment.info().retry_after) == ("open", 20.0)
        assert inventory.info().reopens == 1

        service.default = OK
        clock.advance(20)
        assert attempt(stock) == ["ok"]
        assert inventory.info().state == "closed"
        attempt(pay, 19)
        assert payment.info().state == "half_open"
        attempt(pay)
        assert payment.info().state == "closed"

    waits = {
        (change.circuit_name, change.reopens): change.wait
        for change in recorder.of(StateChanged)
        if change.new_state is State.OPEN
    }
    assert waits["stripe", 0] == 10.0
    assert waits["stripe", 1] == 20.0
    assert 4.5 <= (waits["warehouse", 0] or 0) <= 5.5


def test_a_time_window_forgets_an_old_burst(service: Service, clock: VirtualClock, bus: Bus) -> None:
    """Failures of two minutes ago do not count against a payment of now."""
    cb = make_breaker("stripe", "payment", clock=clock, bus=bus)
    service.script.extend([BROKEN] * 4)
    with httpx.Client(base_url=service.url) as client:
        charge = cb(lambda: client.post("/charges").raise_for_status())
        attempt(charge, 4)
        clock.advance(120)
        attempt(charge, 20)
    metrics = cb.info().metrics
    assert (cb.state, metrics.total_count, metrics.failure_count) == (State.CLOSED, 20, 0)


# -- how long to wait -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "expected"), [("7", 7.0), ("86400", 3600.0), (None, 60.0), ("soon", 60.0), (b"date", 90.0)]
)
def test_the_service_says_how_long_to_wait(
    service: Service, clock: VirtualClock, bus: Bus, asked: str | bytes | None, expected: float
) -> None:
    """`RetryAfter` obeys a 503's Retry-After, in seconds or as a date, cut at an hour, and else falls back."""
    if asked == b"date":
        asked = formatdate(clock.time() + 90, usegmt=True)
    headers = {"Retry-After": str(asked)} if asked else {}
    service.default = Answer(503, headers=headers)
    cb = CircuitBreaker("mail", tripper=FailureStreak(3), retry=RetryAfter(Cooldown(60)), clock=clock, bus=bus)
    with httpx.Client(base_url=service.url) as client:
        send = cb(lambda: client.post("/mail", json={"to": "a"}).raise_for_status())
        attempt(send, 3)
        with pytest.raises(CallNotPermittedError) as refusal:
            send()
    assert refusal.value.retry_after == expected


def test_a_response_judged_by_its_value_may_ask_for_a_wait_too(service: Service, clock: VirtualClock, bus: Bus) -> None:
    """`RetryAfter` reads the header of a returned response that `Returned` judged a failure."""
    service.default = Answer(503, headers={"Retry-After": "12"})
    cb = CircuitBreaker(
        "mail",
        tracker=Returned(lambda response: response.is_server_error),
        tripper=FailureStreak(1),
        retry=RetryAfter(Cooldown(60)),
        clock=clock,
        bus=bus,
    )
    with httpx.Client(base_url=service.url) as client:
        assert cb.call(client.get, "/mail").status_code == 503
    assert cb.info().retry_after == 12.0


def test_a_circuit_that_only_a_person_closes(service: Service, clock: VirtualClock, bus: Bus) -> None:
    """With `Never` no wait is promised and none ends; `reset` closes it."""
    cb = CircuitBreaker("ledger", tripper=FailureStreak(1), retry=Never(), clock=clock, bus=bus)
    service.script.append(BROKEN)
    with httpx.Client(base_url=service.url) as client:
        ledger = cb(lambda: client.get("/ledger").raise_for_status())
        attempt(ledger)
        clock.advance(1e9)
        with pytest.raises(CallNotPermittedError) as refusal:
            ledger()
        assert refusal.value.retry_after is None
        cb.reset()
        assert attempt(ledger) == ["ok"]
