"""Write docs/performance.md and its figures from the measurements.

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

from clipseq.figures import save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can distinguish.
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

## How much slower is a training step?

The towers take the same time with any similarity; a similarity adds its own time, forward and
backward. In the demo (two layers of width 96, batches of 64 clips, 32 steps of radar against
some 20 tokens, one thread), training with `combined` took 3.7 times as long as plain CLIP. With
larger towers, the similarity takes a smaller share. Milliseconds per training step on {machine}:

{steps}
D = 256, float32, all steps real. T counts the steps of x, L those of y.

The last column divides the time at the largest size by that of the matrix products of all steps
with all others. Plain CLIP is the row `global`. The default `combined` costs the sum of its parts;
with fewer or cheaper parts, as in the demo, it is faster. To find out how much time a similarity
adds to your model:

1. Time your step with `use_sequence_similarity=False`.
2. Add what `clipseq bench` prints for your sizes, on your machine:

```sh
clipseq bench local --batch 64 --steps 32 --others 20
```

A GPU uses other kernels, which have not been timed yet;
`clipseq bench combined --device cuda --dtype bfloat16` times them.

If a similarity is too slow for you, [](troubleshooting.md#slow) says what to change first.
"""

GROWTH = """\
## How do time and memory grow?

Time grows in proportion to the number of cells, B·C·T·L, except for `global`. A cell is one step
of x with one step of y in one pair. Memory grows with the inputs and the scores, because pairs are
scored in tiles.

![Time and memory of each similarity against B·C·T·L](figures/performance.png)

Thin lines are proportional to B·C·T·L. The table has T=62, L=20 and a growing number of pairs.
Where time is proportional to the number of cells, the first number stays the same; the second is
the memory added.

{growth}"""

PEERS_TITLE = """\
## How does it compare with other libraries?

![Time and memory of each similarity and its peers](figures/performance-peers.png)

The [last table](#other-libraries) has the numbers.
"""

METHOD = """\
## Appendix: every figure

`make bench` takes the measurements, and `python benchmarks/report.py` writes this page and its
figures; `make performance` does both.

{conditions}
**Time** is the median over rounds of one forward and backward pass. Each round times, one after
the other, the floor, then the similarity of ours that a peer is compared with (or the parts of
`combined`), and then the similarity or peer itself.

**The floor** is the time that torch takes, in the same run, for the three matrix products of
2·B·C·T·L·D operations that give the cosines and their gradients to both sides. Some
similarities are faster: `global` does not need these products, the backward pass of `local` needs
only the winning pairs of windows, and a band needs only its own cells.

**Memory** is the peak memory of a fresh process during the call, minus the memory that it held
before, without the inputs and their gradients.

**Ragged** batches have lengths drawn uniformly from 1 to T, or L. Their floor counts all steps,
padding included; the real steps need {share} of it.

{sizes}
### Every similarity

{similarities}
### Other libraries

{peers}"""


def page(conditions: dict[str, Any], entries: Sequence[Entry]) -> str:
    """Return the text of the page."""
    measured = [entry for entry in entries if "skipped" not in entry]
    shares = [e["real_cells"] / e["cells"] for e in measured if e["padding"] == "ragged"]
    bounds = dict.fromkeys(f"{share:.0%}" for share in (min(shares), max(shares))) if shares else ()
    machine = conditions["machine"]
    return "\n".join(
        [
            TITLE.format(
                machine=f"{machine['cores']} cores of {machine['cpu']}", steps=_steps(measured)
            ),
            GROWTH.format(growth=_growth(measured)),
            PEERS_TITLE,
            METHOD.format(
                conditions=_conditions(conditions, measured),
                share=" to ".join(bounds) or "an unmeasured share",
                sizes=_sizes(),
                similarities=_similarities(measured),
                peers=_peers(entries),
            ),
        ]
    )


def _steps(measured: Sequence[Entry]) -> str:
    """Return the table of what a similarity adds to a training step."""
    found = {(e["label"], e["size"]): e for e in measured if e["padding"] == "full"}
    sizes = [name for name in ("S1", "M64", "S2", "S3") if any(key[1] == name for key in found)]
    rows = [
        (
            label,
            *(
                _number(1e3 * found[label, size]["seconds"]) if (label, size) in found else ""
                for size in sizes
            ),
            _number(found[label, sizes[-1]]["seconds"] / found[label, sizes[-1]]["floor"])
            if (label, sizes[-1]) in found
            else "",
        )
        for label in COLOURS
        if any((label, size) in found for size in sizes)
    ]
    shapes = (f"B={SIZES[s].b}, T={SIZES[s].t}, L={SIZES[s].length}" for s in sizes)
    return _table(("ms", *shapes, "× products"), rows)


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
    """Return the table of nanoseconds per cell, and MiB, for T=62, L=20 and more and more pairs."""
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
    head = ("ns per cell, MiB", *(f"B=C={SIZES[size].b}" for size in series))
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
        "\nLoops and einsums are ours, written from the formulas. They and open_clip's losses give "
        "the same scores (or loss) and gradients as clipseq. The following peers do not, and are "
        "timed nevertheless:\n\n" + "\n".join(notes) + "\n"
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
    """Draw time and memory of ours over B·C·T·L, one line per similarity, with the floor."""
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
        # Lines in proportion to B·C·T·L, through the floor.
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
    """Draw time (above) and memory (below) over B·C·T·L, a column for each of ours with peers."""
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
    # A logarithmic axis cannot show zero.
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
        # On a short axis only one power of ten would be labelled.
        axis.set_minor_formatter(LogFormatterSciNotation(minor_thresholds=(2, 0.5)))
    panel.tick_params(which="minor", labelsize=6)
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)


def main() -> None:
    results, docs = (
        Path(given) for given in (*sys.argv[1:], *("benchmarks.json", "docs")[len(sys.argv) - 1 :])
    )
    if not results.exists():
        sys.exit(f"{results} must exist; write it with `make bench`")
    content = json.loads(results.read_text())
    entries = content["entries"]
    if not any("skipped" not in entry for entry in entries):
        sys.exit(f"{results} must have at least one measurement; run `make bench` again")
    docs.joinpath("performance.md").write_text(page(content["conditions"], entries))
    save(against_size(entries), docs / "figures" / "performance.png")
    save(against_peers(entries), docs / "figures" / "performance-peers.png")
    print(f"{docs}/performance.md, with figures, from {len(entries)} entries of {results}")


if __name__ == "__main__":
    main()
