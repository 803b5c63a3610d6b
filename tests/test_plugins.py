"""Listeners that others publish: found by name, attached by `observe()`, and no danger when they are broken."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fluxgate import Bus, CircuitBreaker, MissingExtraError, State
from fluxgate.events import Event, StateChanged
from fluxgate.listeners import load
from fluxgate.testing import EventRecorder
from tests.running import Running, script, together

MODULE = "fluxgate_published"

Publish = Callable[..., None]


class Sample(EventRecorder):
    """A listener that asks to be attached by `observe`."""

    automatic = "sample"
    made = 0

    def __init__(self) -> None:
        super().__init__(StateChanged)
        type(self).made += 1


def sample(purpose: Any = "sample", **attributes: Any) -> type[Sample]:
    """A fresh class of that kind."""
    return type("Sample", (Sample,), {"automatic": purpose, "made": 0} | attributes)


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Publishes these objects, and nothing else, under the group of entry points; a str is a path to import from."""
    module = ModuleType(MODULE)
    monkeypatch.setitem(sys.modules, MODULE, module)

    def publish(**published: Any) -> None:
        points: list[EntryPoint] = []
        for name, target in published.items():
            setattr(module, name, target)
            path = target if isinstance(target, str) else f"{MODULE}:{name}"
            points.append(EntryPoint(name, path, "fluxgate.listeners"))
        found = EntryPoints(points)
        monkeypatch.setattr("importlib.metadata.entry_points", lambda **params: found.select(**params))

    publish()
    return publish


# -- by name --------------------------------------------------------------------------------------------------------


def test_load_gives_what_is_published_under_the_name(publish: Publish) -> None:
    """`load` returns the class or factory itself, made by nobody yet."""
    mine = sample()
    publish(other=sample(), mine=mine)
    assert load("mine") is mine
    assert mine.made == 0


def test_load_names_what_there_is(publish: Publish) -> None:
    """An unknown name is quoted along with those that are installed; so is the lack of any."""
    publish(zebra=sample(), ant=sample())
    with pytest.raises(LookupError, match=r"'bee'.*ant, zebra"):
        load("bee")
    publish()
    with pytest.raises(LookupError, match=r"'bee'.*none"):
        load("bee")


@pytest.mark.parametrize("path", ["fluxgate_no_such_module:Listener", "fluxgate.events:NoSuchListener"])
def test_load_does_not_hide_why_it_failed(publish: Publish, path: str) -> None:
    """A listener that is published and cannot be imported raises what its import raised."""
    publish(broken=path)
    with pytest.raises((ModuleNotFoundError, AttributeError), match=r"no_such_module|NoSuchListener"):
        load("broken")


def test_fluxgates_own_listeners_register_the_same_way() -> None:
    """What comes with Fluxgate is found by name, too."""
    for name in ("log", "structlog"):
        assert callable(load(name))


# -- observe --------------------------------------------------------------------------------------------------------


def infos(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]


def errors(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_observe_attaches_what_declares_itself_automatic(publish: Publish, caplog: pytest.LogCaptureFixture) -> None:
    """Each automatic listener is made once and hears every circuit; one line in the log says which."""
    caplog.set_level(logging.INFO, "fluxgate")
    first, second, by_hand = sample("one"), sample("two"), sample(None)
    publish(first=first, second=second, by_hand=by_hand)
    bus = Bus()
    before = CircuitBreaker("before", bus=bus)
    subscriptions = bus.observe()
    after = CircuitBreaker("after", bus=bus)
    before.force_open()
    after.force_open()
    assert [first.made, second.made, by_hand.made] == [1, 1, 0]
    assert len(subscriptions) == 2
    assert all(subscription.active for subscription in subscriptions)
    (line,) = infos(caplog)
    assert "first" in line
    assert "second" in line
    assert "by_hand" not in line


def test_observed_listeners_hear_events(publish: Publish) -> None:
    """What `observe` attached receives the events that it asks for."""
    seen: list[Event] = []
    publish(mine=sample(__call__=lambda self, event: seen.append(event)))
    bus = Bus()
    bus.observe()
    CircuitBreaker("payments", bus=bus).force_open()
    assert [type(event) for event in seen] == [StateChanged]


def test_observe_twice_attaches_once(publish: Publish, caplog: pytest.LogCaptureFixture) -> None:
    """A second `observe` gives the same subscriptions, makes nothing and says nothing."""
    caplog.set_level(logging.INFO, "fluxgate")
    mine = sample()
    publish(mine=mine)
    bus = Bus()
    subscriptions = bus.observe()
    assert bus.observe() == subscriptions
    assert mine.made == 1
    assert len(infos(caplog)) == 1


def test_observe_leaves_alone_what_is_served_already(publish: Publish, caplog: pytest.LogCaptureFixture) -> None:
    """Where a listener of the program's hears every circuit, none is made for its purpose: no line is written twice."""
    caplog.set_level(logging.INFO, "fluxgate")
    ours, theirs, other = sample("log"), sample("log"), sample("metrics")
    publish(theirs=theirs, other=other)
    bus = Bus()
    by_hand = bus.attach(ours())
    assert len(bus.observe()) == 1
    assert (theirs.made, other.made) == (0, 1)
    assert infos(caplog) == ["observing circuits with: other"]
    one = Bus()
    one.attach(ours(), circuits="pay*")
    CircuitBreaker("payments", bus=one, listeners=[ours()])
    assert len(one.observe()) == 2, "some circuits are not all"
    by_hand.close()


def test_observe_holds_up_nobody_else(publish: Publish) -> None:
    """While a listener that is being attached takes its time, other threads may make circuits and listen to them."""
    bus, others = Bus(), list[bool]()

    def attached(self: object, subscription: object) -> None:
        others.append(Running(lambda: CircuitBreaker("payments", bus=bus)).done(timeout=2))

    publish(mine=sample(attached=attached))
    bus.observe()
    assert others == [True]


def test_observe_from_many_threads_attaches_once(publish: Publish) -> None:
    """Two threads that both start to observe do not attach everything twice."""
    both, mine = threading.Barrier(4), sample()
    publish(mine=mine)
    bus = Bus()
    answers: list[object] = []

    def observe() -> None:
        both.wait()
        answers.append(bus.observe())

    together(*[observe] * 4)
    assert len(bus.observe()) == 1
    assert all(answer == answers[0] for answer in answers)
    assert mine.made == 1


def test_observe_may_begin_anew(publish: Publish) -> None:
    """After its subscriptions were closed, `observe` attaches new ones."""
    mine = sample()
    publish(mine=mine)
    bus = Bus()
    for times in (1, 2):
        (subscription,) = bus.observe()
        assert mine.made == times
        subscription.close()


def test_observe_with_nothing_installed(publish: Publish, caplog: pytest.LogCaptureFixture) -> None:
    """Without any listener `observe` attaches none, and the log says so."""
    caplog.set_level(logging.INFO, "fluxgate")
    publish()
    assert Bus().observe() == ()
    assert len(infos(caplog)) == 1
    assert "no" in infos(caplog)[0]


def test_each_bus_observes_for_itself(publish: Publish) -> None:
    """Two buses that are observed have a listener each."""
    mine = sample()
    publish(mine=mine)
    assert set(Bus().observe()).isdisjoint(Bus().observe())
    assert mine.made == 2


def missing(name: str) -> Callable[[Any], None]:
    def __init__(self: Any) -> None:
        raise MissingExtraError(f"{name} is not installed")

    return __init__


def test_of_several_for_one_purpose_the_first_that_can_be_made_is_taken(
    publish: Publish, caplog: pytest.LogCaptureFixture
) -> None:
    """Rank, then name, decides among listeners of one purpose; one whose library is missing gives way silently."""
    caplog.set_level(logging.INFO, "fluxgate")
    lacking = sample("logs", rank=-2, __init__=missing("lacking"))
    better, worse, same = sample("logs", rank=-1), sample("logs"), sample("logs", rank=-1)
    publish(a_worse=worse, b_lacking=lacking, c_better=better, d_same=same)
    assert len(Bus().observe()) == 1
    assert (better.made, worse.made, same.made) == (1, 0, 0)
    assert "c_better" in infos(caplog)[0]
    assert not errors(caplog)


def test_where_no_library_is_there_nothing_is_attached(publish: Publish, caplog: pytest.LogCaptureFixture) -> None:
    """A missing extra is no fault: it is passed over without a word of alarm."""
    publish(lacking=sample(__init__=missing("lacking")))
    assert Bus().observe() == ()
    assert not errors(caplog)


def failing(self: Any) -> None:
    raise OSError("no connection")


def no_listener() -> object:
    return object()


no_listener.automatic = "other"  # type: ignore[attr-defined]


BROKEN: dict[str, Any] = {
    "no_module": "fluxgate_no_such_module:Listener",
    "no_attribute": "fluxgate.events:NoSuchListener",
    "not_made": sample("other", __init__=failing),
    "not_callable": no_listener,
    "wrong_events": sample("other", __init__=lambda self: None, events=("StateChanged",)),
    "no_events": sample("other", __init__=lambda self: None, events=()),
    "wrong_rank": sample("other", rank="high"),
    "wrong_purpose": sample(["other"]),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_listener_costs_no_other(publish: Publish, broken: str, caplog: pytest.LogCaptureFixture) -> None:
    """What cannot be imported, made, ranked or attached is logged by name with the reason; the others are attached."""
    before, after = sample("before"), sample("after")
    publish(a_before=before, broken=BROKEN[broken], z_after=after)
    bus = Bus()
    subscriptions = bus.observe()
    assert (before.made, after.made) == (1, 1)
    assert bus.observe() == subscriptions
    assert (before.made, after.made) == (1, 1)
    CircuitBreaker("payments", bus=bus).force_open()
    if broken != "wrong_rank":  # which might do as well as any other
        assert len(subscriptions) == 2
        (record,) = errors(caplog)
        assert "broken" in record.getMessage()
        assert record.exc_info is not None


def test_observe_holds_no_lock_while_it_runs_others_code(publish: Publish) -> None:
    """A listener that is being made may wait for another thread that makes and uses circuits of the bus."""
    bus = Bus()

    def busy(self: Sample) -> None:
        EventRecorder.__init__(self, StateChanged)
        other = Running(lambda: CircuitBreaker("other", bus=bus).force_open())
        done.append(other.done(5))

    done: list[bool] = []
    publish(mine=sample(__init__=busy))
    assert Running(bus.observe).done()
    assert done == [True]


# -- from a distribution --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the sample distribution has been installed, from the disk alone."""
    tools = {each.metadata["Name"]: each.version for each in importlib.metadata.distributions()}
    if "pip" not in tools or int(tools.get("setuptools", "0").split(".")[0]) < 77:
        pytest.skip("could not import what builds the sample: pip, and setuptools 77 or newer")
    folder = tmp_path_factory.mktemp("plugin")
    source = Path(shutil.copytree(Path(__file__).with_name("plugin_sample"), folder / "source"))
    target = folder / "target"
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--target", str(target)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, str(source)], capture_output=True, text=True, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return target


def with_plugin(installed: Path, source: str) -> list[str]:
    """Run a program where the sample is installed, and give back what its listeners printed."""
    done = subprocess.run(
        [sys.executable, "-c", source],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(installed)},
    )
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith(("sample:", "quiet:"))]


def test_an_installed_distribution_is_found(installed: Path) -> None:
    """What a third party's distribution publishes is loaded by name, and attached by `observe` if it asks for it."""
    source = """
import fluxgate, fluxgate.listeners
from fluxgate import CircuitBreaker

bus = fluxgate.Bus()
bus.attach(fluxgate.listeners.load("sample")())
with bus.attach(fluxgate.listeners.load("sample-quiet")()):
    CircuitBreaker("by hand", bus=bus).force_open()

fluxgate.observe()
fluxgate.observe()
CircuitBreaker("observed").force_open()
"""
    assert with_plugin(installed, source) == [
        f"sample: StateChanged by hand {State.FORCED_OPEN}",
        f"quiet: {State.FORCED_OPEN}",
        f"sample: StateChanged observed {State.FORCED_OPEN}",
    ]


OBSERVED = """
import logging, sys, fluxgate
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(name)s %(levelname)s %(message)s")
subscriptions = fluxgate.observe()
cb = fluxgate.CircuitBreaker("payments", tripper=fluxgate.FailureStreak(1))
cb.call_with_fallback(int, lambda error: 0, "many")
from prometheus_client import REGISTRY
print(REGISTRY.get_sample_value("circuit_breaker_state", {"circuit_name": "payments", "state": "open"}))
"""


def test_observe_attaches_all_that_come_with_the_package() -> None:
    """With every library installed: structlog's, Prometheus's and both of OpenTelemetry's, and the log says so."""
    for library in ("structlog", "prometheus_client", "opentelemetry.trace"):
        pytest.importorskip(library)
    lines = script(OBSERVED).stdout.splitlines()
    names = "opentelemetry, opentelemetry-metrics, prometheus, structlog"
    assert lines[0] == f"fluxgate INFO observing circuits with: {names}"
    assert "circuit_opened" in lines[1]
    assert lines[2] == "1.0"


def test_the_page_lists_all_that_a_listener_may_have() -> None:
    """What the engine looks up on a listener, or on its class, stands in the table of the page about writing one."""
    root = Path(__file__).parents[1]
    source = "".join(path.read_text("utf-8") for path in (root / "src" / "fluxgate").glob("*.py"))
    asked = set(re.findall(r'getattr\((?:\w+\.)*(?:listener|factory), "([a-z]\w+)"', source))
    page = (root / "docs" / "listeners" / "own.md").read_text("utf-8")
    table = page.split("| attribute |", 1)[1].split("\n\n", 1)[0]
    listed = {name for line in table.splitlines()[2:] for name in re.findall(r"`(\w+)[`(]", line.split("|")[1])}
    assert listed == asked
    assert len(listed) == 12
