"""How cost grows, as a picture."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

Panels = tuple[tuple[str, str, tuple[str, ...], str], ...]


def draw(measured: dict[str, Any], file: Path, panels: Panels) -> str:
    """Write the plot, if matplotlib is there, and say what was done.

    A panel is its title, the name of what grows, the measurements whose sizes it shows, and the figure.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return "No plot was drawn, which takes matplotlib: pip install 'myllm-suite[bench]'"
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams["font.size"] = 9
    from matplotlib import pyplot, ticker

    plain = ticker.FuncFormatter(lambda value, _: f"{value:g}")
    figure, axes = pyplot.subplots(1, len(panels), figsize=(13, 4.2), layout="constrained")
    for axis, (title, across, metrics, field) in zip(axes, panels, strict=True):
        sizes = {int(size): each for metric in metrics for size, each in measured[metric].items()}
        for place, name in enumerate(next(iter(sizes.values()))):
            line = [(size, sizes[size][name][field]) for size in sorted(sizes)]
            axis.plot(
                *zip(*line, strict=True),
                label=f"{name} ({measured['sides'][name]['weights']})",
                marker="o",
                markersize=3.5,
                linewidth=2.4 if place == 0 else 1.2,
                zorder=10 - place,
            )
        axis.set(title=title, xlabel=across, xscale="log", yscale="log", xticks=sorted(sizes))
        axis.xaxis.set_minor_locator(ticker.NullLocator())
        axis.xaxis.set_major_formatter(plain)
        axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(plain)
        axis.yaxis.set_minor_locator(ticker.NullLocator())
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    figure.savefig(file, dpi=140)
    pyplot.close(figure)
    return f"How cost grows is drawn in {file}"
