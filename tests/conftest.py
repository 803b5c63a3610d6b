"""What holds for all tests."""

from __future__ import annotations

import gc
import os
from collections.abc import Generator

import pytest
from hypothesis import settings

# Where a missing library means that something is broken, rather than that the developer has not installed it.
EXPECT_LIBRARIES = bool(os.environ.get("CI")) and not os.environ.get("FLUXGATE_BARE")

if not os.environ.get("CI"):  # hypothesis has a profile of its own for CI
    settings.register_profile("fluxgate", deadline=None)
    settings.load_profile("fluxgate")


def _loud(report: pytest.CollectReport | pytest.TestReport) -> None:
    """Turn a skip by `importorskip` into a failure where the library was to be there."""
    if EXPECT_LIBRARIES and report.skipped and isinstance(report.longrepr, tuple):
        path, line, reason = report.longrepr
        if "could not import" in reason:
            report.outcome = "failed"
            report.longrepr = f"{path}:{line}: no skip in CI: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _loud(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _loud(report)
    return report


def pytest_collection_finish() -> None:
    """Spare the collector what has been imported so far: no test makes garbage of it, and many call `gc.collect`."""
    gc.collect()
    gc.freeze()
