"""The command `fluxgate`. What a subcommand needs is imported when it runs, so that help needs nothing."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, TextIO

from .errors import MissingExtraError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

_SHORTEST = 3.0
_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; what it returns is the exit code.

    Raises:
        SystemExit: help was asked for (0), or the arguments make no sense (2).
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.version:
        from importlib.metadata import version

        print(f"fluxgate {version('fluxgate')}")
        return 0
    if arguments.run is None:
        parser.print_help(sys.stderr)
        return 2
    try:
        return int(arguments.run(arguments))
    except MissingExtraError as error:
        print(f"fluxgate: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return _INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fluxgate",
        description="A circuit breaker that explains itself.",
        epilog="'fluxgate COMMAND --help' says more about a command.",
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        help="circuits that open and recover on real HTTP, explained as it happens",
        description=(
            "Start an HTTP service on loopback that falls ill and recovers, call it with httpx through three "
            "circuits of different policies, print each transition with its reason, and end with a table. "
            "Exits with 0 if each circuit opened and recovered, else with 1. Needs the extra 'demo'."
        ),
    )
    demo.add_argument(
        "--duration",
        type=_duration,
        default=20.0,
        metavar="SECONDS",
        help=f"how long the service's script takes: {_SHORTEST:g} or more, 20 by default",
    )
    demo.add_argument("--json", action="store_true", help="print one JSON document at the end, all else to stderr")
    demo.add_argument("--log", type=_new_file, metavar="FILE", help="write the log listener's lines to FILE")
    demo.set_defaults(run=_demo)

    listeners = commands.add_parser(
        "listeners",
        help="the listeners that are installed, and what those lack that cannot be used",
        description="List the listeners published under the entry-point group 'fluxgate.listeners'.",
    )
    listeners.set_defaults(run=_listeners)
    return parser


def _duration(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = float("nan")
    if not _SHORTEST <= seconds < float("inf"):  # written so that NaN is refused as well
        raise argparse.ArgumentTypeError(f"must be a number of seconds, at least {_SHORTEST:g}, got {text!r}")
    return seconds


def _new_file(path: str) -> TextIO:
    try:
        return open(path, "w", encoding="utf-8")
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot write {path}: {error.strerror}") from error


def _demo(arguments: argparse.Namespace) -> int:
    from .demo import run

    reconfigure: Any = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")  # a terminal without → shows the rest all the same
    with arguments.log or nullcontext() as log:
        return run(arguments.duration, as_json=arguments.json, log=log)


def _listeners(_: argparse.Namespace) -> int:
    from ._plugins import entry_points

    points = entry_points()
    width = max(map(len, points), default=0)
    for name, point in points.items():
        print(f"{name:<{width}}  {_condition(point)}")
    if not points:
        print("no listener is installed")
    return 0


def _condition(point: "EntryPoint") -> str:
    try:
        factory: Any = point.load()
        if getattr(factory, "automatic", None):  # `fluxgate.observe` makes these without arguments, so may we
            factory()
    except MissingExtraError as error:
        return f"missing: {error}"
    except Exception as error:
        return f"broken: {type(error).__name__}: {error}"
    return f"ready: {point.value.replace(':', '.')}"
