"""Builds the dashboards from the listeners' catalogue of names: ``python -m fluxgate.dashboards.build FOLDER``.

What they are called, what they show and what they ask comes from here; the JSON beside it is what is built, and a test
compares the two. Needs Grafana's own library, which the extra ``dev`` brings; to use the dashboards it is not needed.
"""

import json
import sys
import warnings
from pathlib import Path
from typing import Any, Final

from fluxgate.errors import MissingExtraError, import_extra


def build() -> dict[str, str]:
    """Each file's name and its text.

    Raises:
        MissingExtraError: grafana-foundation-sdk is not installed.
    """
    for part in ("builders", "models", "cog"):
        import_extra(
            f"grafana_foundation_sdk.{part}",
            wanted_by="the build of the dashboards",
            package="grafana-foundation-sdk",
            extra="dev",
        )
    with warnings.catch_warnings():
        # The library would rather have the newer schema, which Grafana 11 can neither import nor provision.
        warnings.filterwarnings("ignore", "Prefer using dashboardv2", DeprecationWarning)
        from grafana_foundation_sdk.cog.encoder import JSONEncoder

        from . import _circuit, _fleet, _logs

    built = {"fleet.json": _fleet.build(), "circuit.json": _circuit.build(), "logs.json": _logs.build()}
    return {file: _text(_tidy(json.loads(JSONEncoder().encode(each)))) for file, each in built.items()}


def _text(dashboard: dict[str, Any]) -> str:
    return json.dumps(dashboard, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


_DATA_LINK: Final = {"title", "url", "targetBlank"}


def _tidy(dashboard: dict[str, Any]) -> dict[str, Any]:
    """Mend what the library makes of links and annotations.

    It puts each into a menu that newer Grafanas keep closed, and has one type for the links of dashboards and of data.
    """
    for shown in (*dashboard["links"], *dashboard["annotations"]["list"]):
        shown.pop("placement", None)
    for panel in dashboard["panels"]:
        defaults = panel.get("fieldConfig", {}).get("defaults", {})
        if "links" in defaults:
            defaults["links"] = [{key: each[key] for key in each.keys() & _DATA_LINK} for each in defaults["links"]]
    return dashboard


def main(arguments: list[str]) -> int:
    """Write the files into a folder; what it returns is the exit code."""
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        print("usage: python -m fluxgate.dashboards.build FOLDER (which must exist)", file=sys.stderr)
        return 2
    try:
        built = build()
    except MissingExtraError as error:
        print(f"fluxgate: {error}", file=sys.stderr)
        return 1
    for name, text in built.items():
        path = Path(arguments[0], name)
        path.write_text(text, "utf-8")
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
