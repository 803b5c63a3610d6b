"""The command `fluxgate`. What a subcommand needs is imported when it runs, so that help needs nothing."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .demo import LISTENERS
from .errors import MissingExtraError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

_SHORTEST = 3.0
_INTERRUPTED = 130
_LAST_PORT = 65535


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
            "Meanwhile listeners write log lines and alerts to a file, serve /metrics and make spans. "
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
    demo.add_argument(
        "--listeners",
        type=_listener_names,
        metavar="NAMES",
        help=f"which to attach, separated by commas: {', '.join(LISTENERS)}, or none; default: all installed",
    )
    demo.add_argument(
        "--log", type=_writable, metavar="FILE", help="write log lines and alerts to FILE, not to a new one"
    )
    demo.add_argument("--metrics-port", type=_port, default=0, metavar="PORT", help="serve /metrics on 127.0.0.1:PORT")
    demo.add_argument("--spans", type=_base_url, metavar="URL", help="send spans to the OTLP/HTTP receiver at URL")
    demo.add_argument(
        "--prometheus",
        action="store_true",
        help="start a Prometheus with Fluxgate's rules that scrapes the demo, if one is installed",
    )
    demo.set_defaults(run=_demo)

    listeners = commands.add_parser(
        "listeners",
        help="the listeners that are installed, and what those lack that cannot be used",
        description="List the listeners published under the entry-point group 'fluxgate.listeners'.",
    )
    listeners.set_defaults(run=_listeners)

    dashboards = commands.add_parser(
        "dashboards",
        help="Grafana dashboards, Prometheus rules and runbooks, as files",
        description="What operators need beside the metrics: dashboards, rules, runbooks, and what starts them.",
    )
    actions = dashboards.add_subparsers(title="commands", metavar="COMMAND", required=True)
    export = actions.add_parser(
        "export",
        help="write them into a folder",
        description=(
            "Write the dashboards, the rules, the runbooks, and a compose.yaml that starts Prometheus, Alertmanager "
            "and Grafana with all of them, into a folder."
        ),
    )
    export.add_argument("folder", type=Path, metavar="DIR", help="is made if need be, and must be empty")
    export.add_argument("--force", action="store_true", help="replace files of the same names, leave others alone")
    export.set_defaults(run=_export)
    return parser


def _duration(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = float("nan")
    if not _SHORTEST <= seconds < float("inf"):  # written so that NaN is refused as well
        raise argparse.ArgumentTypeError(f"must be a number of seconds, at least {_SHORTEST:g}, got {text!r}")
    return seconds


def _listener_names(text: str) -> list[str]:
    names = [] if text == "none" else list(dict.fromkeys(name.strip() for name in text.split(",")))
    unknown = [name for name in names if name not in LISTENERS]
    if unknown:
        raise argparse.ArgumentTypeError(f"the demo shows {', '.join(LISTENERS)}, got {', '.join(map(repr, unknown))}")
    return names


def _writable(path: str) -> Path:
    try:
        open(path, "a", encoding="utf-8").close()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot write {path}: {error.strerror}") from error
    return Path(path)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > _LAST_PORT:
        raise argparse.ArgumentTypeError(f"must be a port from 0 (any that is free) to {_LAST_PORT}, got {text!r}")
    return int(text)


def _base_url(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"must be a URL like http://127.0.0.1:4318, got {text!r}")
    return text


def _demo(arguments: argparse.Namespace) -> int:
    from .demo import run

    if arguments.prometheus and arguments.listeners is not None and "prometheus" not in arguments.listeners:
        print("fluxgate: --prometheus needs 'prometheus' among --listeners", file=sys.stderr)
        return 2
    _print_what_can_be()
    try:
        return run(
            arguments.duration,
            as_json=arguments.json,
            listeners=arguments.listeners,
            log=arguments.log,
            metrics_port=arguments.metrics_port,
            spans=arguments.spans,
            prometheus=arguments.prometheus,
        )
    except OSError as error:
        print(f"fluxgate: {error}", file=sys.stderr)
        return 1


def _print_what_can_be() -> None:
    """A terminal without → shows the rest all the same."""
    reconfigure: Any = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")


def _listeners(_: argparse.Namespace) -> int:
    from ._plugins import entry_points

    points = entry_points()
    width = max(map(len, points), default=0)
    for name, point in points.items():
        print(f"{name:<{width}}  {_condition(point)}")
    if not points:
        print("no listener is installed")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from ._export import FolderInUseError, export

    _print_what_can_be()
    try:
        written = export(arguments.folder, force=arguments.force)
    except (FolderInUseError, OSError) as error:
        print(f"fluxgate: {error}", file=sys.stderr)
        return 1
    for path in written:
        print(path)
    compose = shlex.quote(str(arguments.folder / "compose.yaml"))
    print(f"\nnext: docker compose -f {compose} up   and open http://127.0.0.1:3000")
    print(f"or import {arguments.folder / 'grafana'}/*.json into a Grafana that you have")
    return 0


def _condition(point: "EntryPoint") -> str:
    try:
        factory: Any = point.load()
        # What needs a library says so by `require`. `fluxgate.observe` makes others without arguments, so may we.
        require = getattr(factory, "require", factory if getattr(factory, "automatic", None) else None)
        if require is not None:
            require()
    except MissingExtraError as error:
        return f"missing: {error}"
    except Exception as error:
        return f"broken: {type(error).__name__}: {error}"
    return f"ready: {point.value.replace(':', '.')}"
