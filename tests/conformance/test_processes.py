"""Refusals that travel between processes."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

import pytest

from fluxgate import CallNotPermittedError
from tests.conformance.workers import report


def test_a_refusal_comes_home_from_another_process() -> None:
    """A `CallNotPermittedError` raised in a worker process arrives whole: circuit, state, wait and the reasons."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        future = pool.submit(report, -3)
        with pytest.raises(CallNotPermittedError) as refusal:
            future.result(timeout=60)
    error = refusal.value
    assert (error.circuit_name, error.state, error.retry_after) == ("reports", "open", 30.0)
    assert str(error) == "circuit 'reports' is open: 1 failure in a row (limit 1); retry after 30.0 s"
    assert error.verdict is not None
    assert error.verdict.to_dict() == {
        "rule": "FailureStreak(1)",
        "met": True,
        "text": "1 failure in a row (limit 1)",
        "observed": 1,
        "limit": 1,
    }


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_refusal_pickles_with_every_protocol(protocol: int) -> None:
    """Every pickle protocol, and `copy`, keep the type, the values and the text of a refusal."""
    with pytest.raises(CallNotPermittedError) as refusal:
        report(1)
    error = refusal.value
    for twin in (pickle.loads(pickle.dumps(error, protocol)), copy.copy(error), copy.deepcopy(error)):
        assert type(twin) is CallNotPermittedError
        assert str(twin) == str(error)
        assert twin.verdict == error.verdict
