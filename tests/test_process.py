"""Events at the edges of a process: import, exit, fork and spawn. Each test is a program of its own."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from threading import Event as Signal
from typing import Any

import pytest

from fluxgate import Bus, CircuitBreaker, FailureStreak
from fluxgate._forks import BegunAnew
from fluxgate.events import CallFailed, Event, StateChanged
from fluxgate.testing import EventRecorder, VirtualClock
from tests.running import PATIENCE, Running, restless, script

HEAD = """
import asyncio, atexit, os, signal, sys, threading, time
import fluxgate
from fluxgate import AsyncCircuitBreaker, Bus, CircuitBreaker, FailureStreak, State
from fluxgate.events import *
from fluxgate.testing import EventRecorder

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())  # whole lines, whoever else writes
"""

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")

# A child ends with 0 if it did what it should, by the alarm if it hangs, and never runs the parent's exit.
FORK = """
def fork(work, *arguments):
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.alarm(10)
            work(*arguments)
            code = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"the child ended with {status}"
"""


def program(source: str, head: str = HEAD, stderr: str = "") -> list[str]:
    """Run it and give back the lines that it printed; it must end well, in time, and say nothing else than `stderr`."""
    done = script(head + dedent(source))
    assert done.stderr == stderr
    return done.stdout.splitlines()


def forking(source: str) -> list[str]:
    """The same for one that forks, about which Python 3.12 and later warn where there are threads."""
    done = script(
        "import warnings; warnings.simplefilter('ignore', DeprecationWarning)\n" + HEAD + FORK + dedent(source)
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


# -- import ---------------------------------------------------------------------------------------------------------


def test_nothing_runs_before_it_is_needed() -> None:
    """Importing, making circuits and inline listening start no thread and load no event loop."""
    lines = program(
        """
        say(threading.active_count(), "asyncio" in before)
        cb = CircuitBreaker("payments", listeners=[lambda event: None])
        fluxgate.attach(lambda event: None, delivery="background")
        cb.call(int)
        say(threading.active_count())
        cb.force_open()
        say(threading.active_count())
    """,
        head="import fluxgate, sys; before = set(sys.modules)\n" + HEAD,
    )
    assert lines == ["1 False", "1", "2"]


# -- exit -----------------------------------------------------------------------------------------------------------


def test_what_waits_at_exit_is_delivered() -> None:
    """A program that ends at once after its last call still delivers it in the background, in order."""
    lines = program("""
        def slow(event):
            time.sleep(0.02)
            say(event.new_state)

        async def aslow(event):
            await asyncio.sleep(0.01)
            say("async", event.new_state)

        fluxgate.attach(slow, delivery="background")
        fluxgate.attach(aslow, delivery="background")
        cb = CircuitBreaker("payments")
        for control in (cb.force_open, cb.reset, cb.disable) * 5:
            control()
        say("end")
    """)
    assert lines[0] == "end"
    assert [line for line in lines[1:] if "async" not in line] == ["forced_open", "closed", "disabled"] * 5
    assert [line for line in lines[1:] if "async" in line] == [
        *("async forced_open", "async closed", "async disabled") * 5
    ]


@pytest.mark.parametrize("ending", ["raise SystemExit(0)", "sys.exit()", "threading.Thread(target=cb.reset).start()"])
def test_it_is_however_the_program_ends(ending: str) -> None:
    """`sys.exit` and threads that are still at work change nothing about it."""
    lines = program(f"""
        fluxgate.attach(lambda event: say(event.new_state), delivery="background")
        cb = CircuitBreaker("payments")
        cb.force_open()
        {ending}
    """)
    assert lines[0] == "forced_open"


def test_a_program_that_fails_delivers_its_last_words() -> None:
    """An unhandled exception ends the program after the events that led to it."""
    source = HEAD + dedent("""
        fluxgate.attach(lambda event: say(event.new_state), delivery="background")
        CircuitBreaker("payments").force_open()
        raise ValueError("the end")
    """)
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1
    assert done.stdout.splitlines() == ["forced_open"]
    assert done.stderr.splitlines()[-1] == "ValueError: the end"


@pytest.mark.parametrize("asynchronous", [False, True], ids=["plain", "async"])
def test_a_stuck_listener_does_not_hang_the_exit(asynchronous: bool) -> None:
    """A background listener that never comes back is given up, and what it lost is told; the others get everything."""
    name = "astuck" if asynchronous else "stuck"
    lost = f"the program ends before all is delivered: 2 events for listener {name} are lost\n"
    lines = program(
        f"""
        inside = threading.Event()

        def stuck(event):
            inside.set()
            threading.Event().wait()

        async def astuck(event):
            inside.set()
            await asyncio.Event().wait()

        fluxgate.attach({name}, delivery="background")
        fluxgate.attach(lambda event: say(event.new_state), delivery="background")
        cb = CircuitBreaker("payments")
        cb.force_open()
        inside.wait()
        cb.reset()
        say("end")
        """,
        stderr=lost,
    )
    assert sorted(lines) == ["closed", "end", "forced_open"]


def test_what_the_exit_cannot_deliver_is_told_to_those_that_listen() -> None:
    """Events that wait behind a stuck listener when the flush gives up are counted as lost, and that is told."""
    lost = "the program ends before all is delivered: 7 events for listener stuck are lost\n"
    lines = program(
        """
        inside = threading.Event()

        def stuck(event):
            inside.set()
            threading.Event().wait()

        fluxgate.attach(stuck, delivery="background")
        fluxgate.attach(lambda event: say(event.listener, event.count), EventsDropped)
        cb = CircuitBreaker("payments")
        cb.force_open()
        inside.wait()
        for _ in range(3):
            cb.reset()
            cb.force_open()
        """,
        stderr=lost,
    )
    assert lines == ["stuck 6"]


def test_listeners_are_closed_at_exit() -> None:
    """At the end each listener's `close()` is called once, after its last event, a coroutine function's too."""
    lines = program("""
        class Listener:
            def __call__(self, event):
                say(self.name, event.new_state)

            def close(self):
                say(self.name, "ended")

        class Inline(Listener):
            name = "inline"

        class Background(Listener):
            name = "background"

        class Async:
            async def __call__(self, event):
                self.loop = asyncio.get_running_loop()
                say("async", event.new_state)

            async def close(self):
                await asyncio.sleep(0)
                say("async ended", asyncio.get_running_loop() is self.loop)

        fluxgate.attach(Inline())
        fluxgate.attach(Background(), delivery="background")
        fluxgate.attach(Async(), delivery="background")
        bus = Bus()
        bus.attach(Inline())
        cb = CircuitBreaker("payments")
        cb.force_open()
        cb.reset()
    """)
    assert [line for line in lines if "background" in line] == [
        *("background forced_open", "background closed", "background ended")
    ]
    assert [line for line in lines if "async" in line] == ["async forced_open", "async closed", "async ended True"]
    assert [line for line in lines if "inline" in line] == [
        *("inline forced_open", "inline closed", "inline ended", "inline ended")
    ]


@pytest.mark.parametrize("attached", ["cb.attach(Listener())", "cb.attach(Listener(), delivery='background')"])
def test_a_close_that_never_ends_does_not_hang_the_exit(attached: str) -> None:
    """An async `close()` that waits for ever is given up like a listener that does."""
    source = HEAD + dedent(f"""
        class Listener:
            async def __call__(self, event):
                pass

            async def close(self):
                await asyncio.Event().wait()

        cb = AsyncCircuitBreaker("payments")
        {attached}
        asyncio.run(cb.force_open())
        say("end")
    """)
    assert script(source).stdout.splitlines() == ["end"]


def test_a_listener_that_was_detached_at_exit_is_not_closed_twice() -> None:
    """A program that closes its subscription in an exit handler, before or after Fluxgate's own, closes it once."""
    lines = program(
        """
        class Listener:
            def __call__(self, event):
                pass

            def close(self):
                say("closed")

        late.append(fluxgate.attach(Listener()))
        early = fluxgate.attach(Listener())
        atexit.register(early.close)
        """,
        head="import atexit\nlate = []\natexit.register(lambda: late[0].close())\n" + HEAD,
    )
    assert lines == ["closed", "closed"]


def test_events_of_exit_handlers_are_delivered() -> None:
    """What a program's own exit handlers do is told, inline and in the background."""
    lines = program("""
        def last():
            cb.disable()
            say("last")

        atexit.register(last)
        fluxgate.attach(lambda event: say("inline", event.new_state))
        fluxgate.attach(lambda event: say("background", event.new_state), delivery="background")
        cb = CircuitBreaker("payments")
        cb.force_open()
    """)
    assert [line for line in lines if line.startswith("background")] == [
        "background forced_open",
        "background disabled",
    ]
    assert "inline disabled" in lines


def test_an_exit_handler_may_be_the_first_to_need_the_background() -> None:
    """The first background event of the process may come when threads can no longer be started."""
    lines = program("""
        def last():
            cb.disable()

        atexit.register(last)
        fluxgate.attach(lambda event: say("background", event.new_state), delivery="background")
        cb = CircuitBreaker("payments")
        say("end")
    """)
    assert lines == ["end", "background disabled"]


def test_where_no_thread_can_be_started_the_exit_delivers_by_itself() -> None:
    """Python 3.12 and later start no thread during exit: so the events are delivered without one."""
    lines = program(
        """
        def no_more_threads():
            def start(self):
                raise RuntimeError("can't create new thread at interpreter shutdown")
            threading.Thread.start = start
            cb.disable()
            cb.reset()

        async def alistener(event):
            await asyncio.sleep(0)
            say("async", event.new_state)

        atexit.register(no_more_threads)
        fluxgate.attach(lambda event: say("plain", event.new_state), delivery="background")
        fluxgate.attach(alistener, delivery="background")
        cb = CircuitBreaker("payments")
    """
    )
    assert sorted(lines) == ["async closed", "async disabled", "plain closed", "plain disabled"]
    assert [line for line in lines if "plain" in line] == ["plain disabled", "plain closed"]


def test_the_exit_delivers_by_itself_without_an_event_loop_too() -> None:
    """So it does where nothing in the program has loaded asyncio before."""
    lines = program(
        """
        import atexit, sys, threading
        import fluxgate

        def no_more_threads():
            def start(self):
                raise RuntimeError("can't create new thread at interpreter shutdown")
            threading.Thread.start = start
            cb.disable()

        atexit.register(no_more_threads)
        fluxgate.attach(lambda event: print(event.new_state, flush=True), delivery="background")
        cb = fluxgate.CircuitBreaker("payments")
        assert "asyncio" not in sys.modules
        """,
        head="",
    )
    assert lines == ["disabled"]


def test_a_call_after_the_end_harms_nobody() -> None:
    """An exit handler that runs after Fluxgate's own may still call a circuit; nothing hangs, nothing is printed."""
    lines = program(
        """
        fluxgate.attach(lambda event: None, delivery="background")
        cb = CircuitBreaker("payments")
        cb.force_open()

        def last():
            cb.reset()
            say(cb.call(int, "7"))

        late.append(last)
        """,
        head="import atexit\nlate = []\natexit.register(lambda: late[0]())\n" + HEAD,
    )
    assert lines == ["7"]


def test_a_bus_of_ones_own_is_flushed_at_exit_as_well() -> None:
    """The events of every bus are delivered, and a circuit that dies with the program is no problem."""
    lines = program("""
        bus = Bus()
        bus.attach(lambda event: say(event.new_state), delivery="background")
        CircuitBreaker("payments", bus=bus).force_open()
        CircuitBreaker("others").force_open()
    """)
    assert lines == ["forced_open"]


# -- fork -----------------------------------------------------------------------------------------------------------


@forks
def test_a_child_can_use_a_circuit_that_other_threads_hammer() -> None:
    """Fork fifty times in the midst of calls from three threads: every child calls, steers and listens at once."""
    lines = forking("""
        recorder = EventRecorder(CallSucceeded, CallFailed, StateChanged)
        cb = CircuitBreaker("payments", tripper=FailureStreak(3), listeners=[recorder])
        fluxgate.attach(lambda event: None, Event, delivery="background", queue_size=50)
        end = threading.Event()

        def boom():
            raise ConnectionError

        def hammer():
            while not end.is_set():
                cb.call_with_fallback(boom, lambda error: None)
                cb.call_with_fallback(int, lambda error: None)
                cb.reset()
                CircuitBreaker("passing").force_open()
                fluxgate.attach(recorder, circuits="nothing").close()

        def child():
            recorder.clear()
            cb.reset()
            cb.call(int)
            cb.force_open()
            cb.reset()
            cb.attach(recorder).close()
            assert cb.info().state == "closed"
            kinds = [type(event).__name__ for event in recorder.events_seen]
            assert kinds[-3:] == ["CallSucceeded", "StateChanged", "StateChanged"], kinds
            numbers = [event.sequence for event in recorder.events_seen]
            assert numbers == sorted(set(numbers)), numbers
            assert CircuitBreaker("new").call(int) == 0

        threads = [threading.Thread(target=hammer, daemon=True) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(50):
            fork(child)
        end.set()
        for thread in threads:
            thread.join()
        say("alive", cb.call_with_fallback(int, lambda error: -1))
    """)
    assert lines[-1].startswith("alive")


@forks
def test_the_child_rebuilds_the_background() -> None:
    """In the child background listeners, plain and async, hear the child's events in a thread of the child's."""
    lines = forking("""
        def listener(event):
            say(os.getpid() == parent, event.new_state)

        async def alistener(event):
            await asyncio.sleep(0)
            say(os.getpid() == parent, "async", event.new_state)

        def child():
            cb.reset()
            assert fluxgate.flush(10)
            cb.disable()
            assert fluxgate.flush(10)

        parent = os.getpid()
        fluxgate.attach(listener, delivery="background")
        fluxgate.attach(alistener, delivery="background")
        cb = CircuitBreaker("payments")
        cb.force_open()
        assert fluxgate.flush(10)
        fork(child)
        cb.metrics_only()
        assert fluxgate.flush(10)
    """)
    assert sorted(lines) == sorted(
        f"{where} {kind}{state}"
        for where, states in ((True, ("forced_open", "metrics_only")), (False, ("closed", "disabled")))
        for state in states
        for kind in ("", "async ")
    )


@forks
def test_what_the_parent_was_to_tell_is_told_by_the_parent_alone() -> None:
    """Events that wait at the fork, in a queue or behind a slow inline listener, are delivered once."""
    lines = forking("""
        inside, go_on = threading.Event(), threading.Event()

        def slow(event):
            if event.circuit_name == "slow" and os.getpid() == parent:
                inside.set()
                go_on.wait(10)

        stuck, free = threading.Event(), threading.Event()

        def queued(event):
            if os.getpid() == parent:
                stuck.set()
                free.wait(10)
            say("queued", os.getpid() == parent, event.circuit_name, event.new_state)

        def child():
            for cb in (one, two):
                cb.metrics_only()
            assert fluxgate.flush(10)

        parent = os.getpid()
        fluxgate.attach(slow)
        fluxgate.attach(lambda event: say("inline", os.getpid() == parent, event.circuit_name, event.new_state))
        fluxgate.attach(queued, circuits="queue", delivery="background")
        one, two = CircuitBreaker("slow"), CircuitBreaker("queue")
        thread = threading.Thread(target=one.force_open)
        thread.start()
        inside.wait(10)
        one.reset()
        two.force_open()
        stuck.wait(10)
        two.reset()
        fork(child)
        go_on.set()
        free.set()
        thread.join()
        assert fluxgate.flush(10)
    """)
    assert sorted(lines) == sorted(
        f"{how} {where} {name} {state}"
        for how, name in (("inline", "slow"), ("inline", "queue"), ("queued", "queue"))
        for where, state in ((True, "forced_open"), (True, "closed"), (False, "metrics_only"))
    )


@forks
def test_losses_before_the_fork_are_the_parents() -> None:
    """The child tells no loss, least of all one of nothing."""
    lines = forking("""
        stuck, free = threading.Event(), threading.Event()

        def queued(event):
            if os.getpid() == parent:
                stuck.set()
                free.wait(10)

        def child():
            cb.reset()
            assert fluxgate.flush(10)

        parent = os.getpid()
        fluxgate.attach(queued, delivery="background", queue_size=1)
        fluxgate.attach(lambda event: say(os.getpid() == parent, event.count), EventsDropped)
        cb = CircuitBreaker("payments")
        cb.force_open()
        stuck.wait(10)
        for _ in range(4):
            cb.reset()
            cb.force_open()
        fork(child)
        free.set()
        assert fluxgate.flush(10)
    """)
    assert all(line.startswith("True ") for line in lines)
    assert sum(int(line.split()[1]) for line in lines) == 7


@forks
def test_losses_behind_a_stuck_listener_are_the_parents_too() -> None:
    """What an outbox lost before the fork is told once, by the parent."""
    lines = forking("""
        import fluxgate._teller

        fluxgate._teller._OUTBOX_SIZE = 5
        inside, go_on = threading.Event(), threading.Event()

        def slow(event):
            if os.getpid() == parent:
                inside.set()
                go_on.wait(10)

        parent = os.getpid()
        fluxgate.attach(slow)
        fluxgate.attach(lambda event: say(os.getpid() == parent, event.count), EventsDropped)
        cb = CircuitBreaker("payments")
        thread = threading.Thread(target=cb.force_open)
        thread.start()
        inside.wait(10)
        for _ in range(6):
            cb.reset()
            cb.force_open()
        fork(cb.reset)
        go_on.set()
        thread.join()
    """)
    assert lines == ["True 8"]


@forks
def test_a_fork_from_a_listener_leaves_both_sides_usable() -> None:
    """A listener that forks, as one that runs a handler program does, disturbs neither process."""
    lines = forking("""
        def child():
            cb.disable()
            assert other.call(int) == 0
            other.force_open()

        def listener(event):
            if event.new_state == "forced_open" and event.circuit_name == "payments":
                fork(child)

        recorder = EventRecorder(StateChanged)
        cb, other = CircuitBreaker("payments"), CircuitBreaker("other")
        fluxgate.attach(listener)
        fluxgate.attach(recorder)
        cb.force_open()
        cb.reset()
        say([str(event.new_state) for event in recorder.events_seen])
    """)
    assert lines == ["['forced_open', 'closed']"]


@forks
def test_a_child_does_not_wait_for_the_parents_threads() -> None:
    """A listener that another thread of the parent is in at the fork is nowhere in the child: closing is at once."""
    lines = forking("""
        import fluxgate._subscription
        fluxgate._subscription._CLOSE_WAIT = 3600.0
        inside, go_on = threading.Event(), threading.Event()

        def slow(event):
            inside.set()
            go_on.wait(10)

        def child():
            for subscription in subscriptions:
                subscription.close()

        subscriptions = [fluxgate.attach(slow), fluxgate.attach(slow, delivery="background")]
        cb = CircuitBreaker("payments")
        thread = threading.Thread(target=cb.force_open)
        thread.start()
        inside.wait(10)
        fork(child)
        go_on.set()
        thread.join()
    """)
    assert lines == []


@forks
def test_a_child_can_bury_though_the_parent_was_at_it() -> None:
    """A fork while another thread tells of a dead circuit leaves the child able to tell of its own dead ones."""
    lines = forking("""
        inside, go_on = threading.Event(), threading.Event()

        def slow(event):
            if os.getpid() == parent:
                inside.set()
                go_on.wait(10)
            else:
                say(event.circuit_name)

        def child():
            cb = CircuitBreaker("child's")
            del cb
            fluxgate.circuits()

        parent = os.getpid()
        fluxgate.attach(slow, CircuitRetired)
        cb = CircuitBreaker("parent's")
        del cb
        thread = threading.Thread(target=fluxgate.circuits)
        thread.start()
        inside.wait(10)
        fork(child)
        go_on.set()
        thread.join()
    """)
    assert lines == ["child's"]


@forks
def test_a_retired_circuit_survives_a_fork_too() -> None:
    """A circuit that has retired still protects: also in a child that was forked while another thread called it."""
    lines = forking("""
        inside, go_on = threading.Event(), threading.Event()

        def rule(metric, state, consecutive_failures):
            if threading.current_thread() is not threading.main_thread():
                inside.set()
                time.sleep(0.2)
            return False

        def boom():
            raise ConnectionError

        def child():
            assert cb.call(int) == 0
            assert cb.info().state == "closed"

        cb = CircuitBreaker("payments", tripper=rule)
        cb.retire()
        thread = threading.Thread(target=lambda: cb.call_with_fallback(boom, lambda error: None))
        thread.start()
        inside.wait(10)
        fork(child)
        thread.join()
        say("done")
    """)
    assert lines == ["done"]


@forks
def test_threads_may_fork_at_the_same_moment() -> None:
    """Each fork gives back what it had locked: afterwards every thread can use what is there."""
    lines = forking("""
        def child():
            cb.reset()
            assert CircuitBreaker("orders").call(int) == 0

        def work():
            for _ in range(10):
                fork(child)

        cb = CircuitBreaker("payments")
        circuits = [CircuitBreaker(f"stock-{number}") for number in range(200)]
        threads = [threading.Thread(target=work, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(4)
        say(*(thread.is_alive() for thread in threads))
        last = threading.Thread(target=cb.force_open, daemon=True)
        last.start()
        last.join(5)
        say(cb.info().state, last.is_alive())
        sys.stdout.flush()
        os._exit(0)
    """)
    assert lines == ["False False False False", "forced_open False"]


def test_what_lives_through_a_fork_may_come_to_be_while_another_thread_forks() -> None:
    """Others that join meanwhile keep a fork, or the exit, from reaching none of those that are there."""

    class Member:
        def after_fork(self) -> None:
            """Nothing to do."""

    def join() -> None:
        while not over.is_set():
            for member in [Member() for _ in range(50)]:
                members.add(member)

    over = Signal()
    members = BegunAnew[Member]()
    there = [Member() for _ in range(200)]
    for member in there:
        members.add(member)
    with restless():
        joining = Running(join)
        try:
            for _ in range(2_000):
                assert set(there) <= set(members)
        finally:
            over.set()
    assert joining.done()


@forks
def test_an_event_loop_may_fork() -> None:
    """A child that is forked within a coroutine, while a task awaits a listener, can run a loop of its own."""
    lines = forking("""
        async def slow(event):
            if os.getpid() == parent:
                await go_on.wait()
            say(os.getpid() == parent, event.new_state)

        def child():
            asyncio.run(cb.disable())

        async def main():
            global go_on
            go_on = asyncio.Event()
            task = asyncio.create_task(cb.force_open())
            await asyncio.sleep(0.01)
            fork(child)
            go_on.set()
            await task

        parent = os.getpid()
        cb = AsyncCircuitBreaker("payments")
        cb.attach(slow)
        asyncio.run(main())
    """)
    assert lines == ["False disabled", "True forced_open"]


@forks
def test_a_childs_exit_delivers_the_childs_events() -> None:
    """A child that ends by itself, as a pre-forked worker does, flushes what it has queued."""
    lines = forking("""
        fluxgate.attach(lambda event: say(os.getpid() == parent, event.new_state), delivery="background")
        parent = os.getpid()
        cb = CircuitBreaker("payments")
        cb.force_open()
        assert fluxgate.flush(10)
        pid = os.fork()
        if pid == 0:
            cb.reset()
            sys.exit()
        assert os.waitpid(pid, 0)[1] == 0
    """)
    assert lines == ["True forced_open", "False closed"]


# -- other processes ------------------------------------------------------------------------------------------------


def echo(event: Event) -> tuple[int, Event]:
    """What a spawned process got."""
    return os.getpid(), event


def test_events_travel_between_processes() -> None:
    """An event goes to a spawned process and back, and is equal to itself."""
    recorder = EventRecorder()
    cb = CircuitBreaker("payments", bus=Bus(), clock=VirtualClock(), tripper=FailureStreak(1), listeners=[recorder])
    call: Any = cb.acquire()
    call.failure(ConnectionError("no route"))
    assert recorder.of(StateChanged)
    assert recorder.of(CallFailed)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        answers = pool.map(echo, recorder.events_seen)
    assert [event for _, event in answers] == recorder.events_seen
    assert {pid for pid, _ in answers} != {os.getpid()}


def test_events_are_read_where_nothing_listens(tmp_path: Path) -> None:
    """A pickled event needs nothing but the package to be read again."""
    recorder = EventRecorder()
    CircuitBreaker("payments", bus=Bus(), listeners=[recorder]).force_open()
    file = tmp_path / "events"
    file.write_bytes(pickle.dumps(recorder.events_seen))
    done = script(
        "import pickle, sys; [print(event.to_dict()['event']) for event in pickle.load(open(sys.argv[1], 'rb'))]",
        str(file),
    )
    assert done.stdout.split() == ["CircuitCreated", "StateChanged"]
