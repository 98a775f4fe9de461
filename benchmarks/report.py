"""docs/performance.md and its figures, from what was measured.

python benchmarks/report.py [RESULTS [DOCS]]
"""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contenders import OURS, PEERS
from results import Entry
from sizes import FEATURES, PADDINGS, SIZES
from tables import ratio_to_ours, share_of_parts

from clipseq.demo.figures import save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart by colour-blind readers too.
COLOURS = {
    "global": "#4d4d4d",
    "local window=1": "#56b4e9",
    "local": "#0072b2",
    "attention": "#d55e00",
    "temporal": "#009e73",
    "temporal band=0.1": "#e69f00",
    "combined": "#cc79a7",
}
MARKERS = "osD^vPX*<>h"

TITLE = """\
# Performance

Time and memory of every similarity, forward and backward, and of what others offer for the same
job. This page and its figures are written by `python benchmarks/report.py` from what `make bench`
measured; `make performance` does both.

**The floor** is the time of the three matrix products of 2·B·C·T·L·D operations that the cosines
and their gradients to both sides take with torch, in the same run. Some are faster: `global` needs
none of them, the backward of `local` the winning pairs of windows only, and a band its own cells
only. **Memory** is the most that a fresh process held beyond what it held before the call, inputs
and their gradients not counted. In every round the floor, then ours beside a peer (or the parts
beside `combined`), then what is measured are timed one after the other; times are medians. Ragged
batches have lengths drawn evenly from 1 to T, or L; their floor is still that of all steps, and the
share of it that real steps need is {share}.

All of it is a CPU's. On a GPU other kernels compute, which have not been timed:
`clipseq bench NAME --device cuda --dtype bfloat16 --batch 128 --steps 248 --others 77` does.
"""


def page(conditions: dict[str, Any], entries: Sequence[Entry]) -> str:
    """The page's text."""
    measured = [entry for entry in entries if "skipped" not in entry]
    shares = [e["real_cells"] / e["cells"] for e in measured if e["padding"] == "ragged"]
    bounds = dict.fromkeys(f"{share:.0%}" for share in (min(shares), max(shares))) if shares else ()
    share = " to ".join(bounds) or "not measured here"
    parts = [TITLE.format(share=share), _conditions(conditions, measured)]
    parts.append(
        "## Against the size\n\n"
        "![Time and memory of each similarity against B·C·T·L](figures/performance.png)\n\n"
        "Thin lines: in proportion to B·C·T·L. The table has T=62 and L=20 and ever more pairs, "
        "with the time for a cell (one step of x with one of y) and the memory: where time is in "
        "proportion the first number stays; the second grows as the inputs and the scores do, if "
        "at all.\n\n" + _growth(measured)
    )
    parts.append("## Each similarity\n\n" + _sizes() + "\n" + _similarities(measured))
    parts.append(
        "## Against others\n\n"
        "![Time and memory of each similarity and its peers](figures/performance-peers.png)\n\n"
        + _peers(entries)
    )
    return "\n".join(parts)


def _conditions(conditions: dict[str, Any], measured: Sequence[Entry]) -> str:
    machine, versions = conditions["machine"], conditions["versions"]
    names = ", ".join(f"{name} {version}" for name, version in versions.items())
    dates = sorted({entry["date"] for entry in measured})
    when = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    timed = {"perf_counter": "wall-clock time"}.get(
        conditions["timer"], f"time by `{conditions['timer']}`"
    )
    return (
        f"Measured {when} on {machine['cores']} cores of {machine['cpu']} ({machine['system']}), "
        f"torch.set_num_threads({conditions['threads']}), float32, {timed}: {names}.\n"
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    lines = [" | ".join(cells) for cells in (head, rule, *rows)]
    return "\n".join(f"| {line} |" for line in lines) + "\n"


def _sizes() -> str:
    rows = [
        (name, str(size.b), str(size.t), str(size.length), f"{size.cells / 1e6:.1f} M")
        for name, size in SIZES.items()
    ]
    return _table(("size", "B = C", "T", "L", "B·C·T·L"), rows) + f"\nD = {FEATURES} everywhere.\n"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _mib(entry: Entry) -> str:
    added = entry["added_bytes"]
    return "unknown" if added is None else f"{added / 2**20:.0f}"


def _similarities(measured: Sequence[Entry]) -> str:
    rows = []
    for entry in _ordered(measured, list(OURS)):
        over_floor = entry["seconds"] / entry["floor"]
        share = share_of_parts(entry)
        rows.append(
            (
                f"{entry['label']}, {entry['padding']}",
                entry["size"],
                _number(1e3 * entry["seconds"]),
                _number(over_floor),
                _mib(entry),
                "" if share is None else f"{share:.2f}",
            )
        )
    head = ("similarity", "size", "ms", "× floor", "MiB", "× sum of its parts")
    return _table(head, rows)


def _growth(measured: Sequence[Entry]) -> str:
    """Nanoseconds a cell, and MiB: T=62 and L=20, ever more pairs."""
    series = [name for name, size in SIZES.items() if (size.t, size.length) == (62, 20)]
    found = {(e["label"], e["size"]): e for e in measured if e["padding"] == "full"}
    series = [size for size in series if any(key[1] == size for key in found)]
    rows = []
    for label in COLOURS:
        if not any((label, size) in found for size in series):
            continue
        cells = [label]
        for size in series:
            entry = found.get((label, size))
            cells.append(
                f"{1e9 * entry['seconds'] / entry['cells']:.2f}, {_mib(entry)}" if entry else ""
            )
        rows.append(cells)
    head = ("ns a cell, MiB", *(f"B=C={SIZES[size].b}" for size in series))
    return _table(head, rows) if rows else ""


def _peers(entries: Sequence[Entry]) -> str:
    rows, absent = [], {}
    for entry in _ordered(entries, list(PEERS)):
        peer = PEERS[entry["label"]]
        if entry.get("skipped", "").startswith("not installed"):
            absent[entry["label"]] = entry["skipped"]
            continue
        start = (f"{entry['label']}, {entry['padding']}", peer.against or "", entry["size"])
        if "skipped" in entry:
            rows.append((*start, entry["skipped"], "", ""))
            continue
        ratio = ratio_to_ours(entry) or 0.0
        milliseconds = _number(1e3 * entry["seconds"])
        rows.append((*start, milliseconds, _number(ratio), _mib(entry)))
    text = _table(("peer", "against", "size", "ms", "× ours", "MiB"), rows)
    notes = [f"- {peer.label}: {peer.note}." for peer in PEERS.values() if peer.note]
    text += (
        "\nLoops and einsums are ours, written from the formulas; they and open_clip's losses give "
        "the same scores (or loss) and gradients. Not the same, and timed all the same:\n\n"
        + "\n".join(notes)
        + "\n"
    )
    if absent:
        lines = [f"- {label}: {why}" for label, why in absent.items()]
        text += "\nNot measured:\n\n" + "\n".join(lines) + "\n"
    return text


def _ordered(entries: Sequence[Entry], labels: list[str]) -> list[Entry]:
    sizes = list(SIZES)
    mine = [entry for entry in entries if entry["label"] in labels]
    return sorted(
        mine,
        key=lambda e: (
            sizes.index(e["size"]),
            labels.index(e["label"]),
            PADDINGS.index(e["padding"]),
        ),
    )


def against_size(entries: Sequence[Entry]) -> "Figure":
    """Time and memory of ours over B·C·T·L, one line a similarity, with the floor."""
    measured = _full(entries)
    figure = _figure(10.5, 4.6)
    time_panel, memory_panel = figure.subplots(1, 2)
    for (label, colour), marker in zip(COLOURS.items(), MARKERS, strict=False):
        points = sorted((e for e in measured if e["label"] == label), key=lambda e: e["cells"])
        cells = [entry["cells"] for entry in points]
        style = {"color": colour, "marker": marker, "markersize": 5, "label": label}
        time_panel.plot(cells, [e["seconds"] for e in points], **style)
        memory_panel.plot(cells, [_mib_or_nan(e) for e in points], **style)
    floors = sorted({(e["cells"], e["floor"]) for e in measured if e["label"] == "temporal"})
    if floors:
        time_panel.plot(*zip(*floors, strict=True), color="black", linestyle="--", label="floor")
        # Proportion to B·C·T·L, through the floor.
        start, end = floors[0][0], floors[-1][0]
        for factor in (0.1, 1.0, 10.0, 100.0):
            first = factor * floors[-1][1] * start / end
            time_panel.plot(
                (start, end), (first, first * end / start), color="#cccccc", linewidth=0.6, zorder=0
            )
    memory_panel.axhline(256, color="#8a8a8a", linewidth=0.8, linestyle=":")
    memory_panel.annotate(
        "256 MiB", (0.01, 256), xycoords=("axes fraction", "data"), va="bottom", color="#8a8a8a"
    )
    _finish(time_panel, "time, forward and backward", "seconds")
    _finish(memory_panel, "memory added", "MiB")
    handles, labels = time_panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure


def against_peers(entries: Sequence[Entry]) -> "Figure":
    """Time (above) and memory (below) over B·C·T·L: a column for each of ours that has peers."""
    measured = _full(entries)
    columns = [
        label
        for label in OURS
        if label in COLOURS
        and any(PEERS[e["label"]].against == label for e in measured if e["label"] in PEERS)
    ]
    across = max(1, min(3, len(columns)))
    down = -(-len(columns) // across)
    figure = _figure(3.4 * across, 6.4 * down)
    panels = figure.subplots(2 * down, across, squeeze=False)
    for number, label in enumerate(columns):
        row, column = divmod(number, across)
        time_panel, memory_panel = panels[2 * row : 2 * row + 2, column]
        names = [label, *(p.label for p in PEERS.values() if p.against == label)]
        palette = ["black", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00"]
        for name, colour, marker in zip(names, palette, MARKERS, strict=False):
            points = sorted((e for e in measured if e["label"] == name), key=lambda e: e["cells"])
            if not points:
                continue
            cells = [entry["cells"] for entry in points]
            ours = name == label
            style = {
                "color": colour,
                "marker": marker,
                "markersize": 5,
                "linewidth": 2.2 if ours else 1.0,
                "label": f"clipseq {name}" if ours else name.removesuffix(f": {label}"),
            }
            time_panel.plot(cells, [e["seconds"] for e in points], **style)
            memory_panel.plot(cells, [_mib_or_nan(e) for e in points], **style)
        _finish(time_panel, label, "seconds" if column == 0 else "")
        _finish(memory_panel, "", "MiB added" if column == 0 else "")
        time_panel.legend(fontsize=7, frameon=False)
        time_panel.set_xlabel("")
    for number in range(len(columns), across * down):
        row, column = divmod(number, across)
        for panel in panels[2 * row : 2 * row + 2, column]:
            panel.set_visible(False)
    return figure


def _full(entries: Sequence[Entry]) -> list[Entry]:
    return [e for e in entries if "skipped" not in e and e["padding"] == "full"]


def _mib_or_nan(entry: Entry) -> float:
    added = entry["added_bytes"]
    # Nothing at all has no place on a logarithmic axis.
    return float("nan") if added is None else max(added / 2**20, 0.1)


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _finish(panel: Any, title: str, quantity: str) -> None:
    from matplotlib.ticker import LogFormatterSciNotation

    panel.set(xscale="log", yscale="log", xlabel="B·C·T·L", ylabel=quantity)
    panel.set_title(title, loc="left", fontweight="bold")
    for axis in (panel.xaxis, panel.yaxis):
        # Of an axis that spans little, a single power of ten would be labelled.
        axis.set_minor_formatter(LogFormatterSciNotation(minor_thresholds=(2, 0.5)))
    panel.tick_params(which="minor", labelsize=6)
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)


def main() -> None:
    results, docs = (
        Path(given) for given in (*sys.argv[1:], *("benchmarks.json", "docs")[len(sys.argv) - 1 :])
    )
    if not results.exists():
        sys.exit(f"no {results}: `make bench` writes it")
    content = json.loads(results.read_text())
    entries = content["entries"]
    if not any("skipped" not in entry for entry in entries):
        sys.exit(f"nothing was measured in {results}")
    docs.joinpath("performance.md").write_text(page(content["conditions"], entries))
    save(against_size(entries), docs / "figures" / "performance.png")
    save(against_peers(entries), docs / "figures" / "performance-peers.png")
    print(f"{docs}/performance.md, with figures, from {len(entries)} entries of {results}")


if __name__ == "__main__":
    main()
