"""What the users' examples share: a service on loopback, a clock that stands still, a bus of their own."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from fluxgate import Bus
from fluxgate.testing import VirtualClock
from tests.conformance.service import Service


@pytest.fixture
def service() -> Generator[Service, None, None]:
    """A scripted HTTP service on a free port."""
    with Service().running() as running:
        yield running


@pytest.fixture
def clock() -> VirtualClock:
    """A clock that stands still until told."""
    return VirtualClock()


@pytest.fixture
def bus() -> Bus:
    """A bus that no other test sees."""
    return Bus()
