"""Draws ``docs/benchmarks.svg``: one panel a workload, one bar a library."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from .peers import OURS, PEERS, ROOT

PICTURE = ROOT / "docs" / "benchmarks.svg"
PANELS = {
    "success": "a success",
    "10 % failures": "one call in ten fails",
    "rejection": "a refusal",
    "async success": "an awaited success",
}
INK = "#7d8590"
"""Reads on white and on black."""
OURS_COLOUR, PEER_COLOUR = "#2f81f7", "#9aa4af"


def draw(results: Mapping[str, Any]) -> None:
    """Draw what the results say."""
    mpl: Any = import_module("matplotlib")
    mpl.use("svg")
    pyplot: Any = import_module("matplotlib.pyplot")
    settings = {
        "svg.hashsalt": "fluxgate",
        "font.size": 9,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
    }
    with mpl.rc_context(settings):
        figure, axes = pyplot.subplots(2, 2, figsize=(9, 6.2), layout="constrained")
        for axis, (workload, title) in zip(axes.flat, PANELS.items(), strict=True):
            _panel(axis, results["peers"][workload], title)
        figure.suptitle("Times as long as without a breaker: less is better", color=INK, fontsize=11)
        figure.savefig(PICTURE, transparent=True, metadata={"Date": None})
        pyplot.close(figure)


def _panel(axis: Any, cells: Mapping[str, Any], title: str) -> None:
    bars = [(peer.name, cells[peer.name]["ratio"]) for peer in reversed(PEERS) if not isinstance(cells[peer.name], str)]
    middle = [ratio[0] for _, ratio in bars]
    colours = [OURS_COLOUR if name == OURS.name else PEER_COLOUR for name, _ in bars]
    drawn = axis.barh([name for name, _ in bars], middle, color=colours)
    axis.bar_label(drawn, [f"{ratio:.3g}×" for ratio in middle], padding=3, color=INK)
    axis.set_title(title, loc="left", fontsize=10)
    axis.set_xlim(0, max(middle) * 1.15)
    axis.xaxis.set_visible(False)
    for side in ("top", "right", "bottom"):
        axis.spines[side].set_visible(False)
    for label, (name, _) in zip(axis.get_yticklabels(), bars, strict=True):
        if name == OURS.name:
            label.set_fontweight("bold")
