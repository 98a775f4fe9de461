"""Measurements as lines of text."""

from collections.abc import Iterator, Sequence

from contenders import CONTENDERS, OURS, PEERS
from results import Entry, Results
from sizes import PADDINGS


def ratio_to_ours(entry: Entry) -> float | None:
    """Return a peer's time divided by our similarity's, which is timed in turn with it."""
    against = CONTENDERS[entry["label"]].against
    return entry["seconds"] / entry["references"][against] if against else None


def share_of_parts(entry: Entry) -> float | None:
    """Return the time divided by the sum of the parts' times, which are timed in turn with it."""
    parts = CONTENDERS[entry["label"]].parts
    return entry["seconds"] / sum(entry["references"][part] for part in parts) if parts else None


def line(entry: Entry) -> str:
    """Return a measurement as one line of text."""
    start = f"{entry['size']:5}{entry['padding']:7} {entry['label']:32}"
    if "skipped" in entry:
        return f"{start} {entry['skipped']}"
    memory = entry["added_bytes"]
    text = (
        f"{start}{1e3 * entry['seconds']:11.1f} ms {entry['seconds'] / entry['floor']:8.2f} x floor"
        f"{'unknown' if memory is None else f'{memory / 2**20:8.0f} MiB'}"
    )
    if entry["padding"] == "ragged":
        share = entry["real_cells"] / entry["cells"]
        text += f", {entry['seconds'] / entry['floor'] / share:.2f} x floor of the real steps"
    if (ratio := ratio_to_ours(entry)) is not None:
        text += f", {ratio:.1f} x ours"
    if (share_of := share_of_parts(entry)) is not None:
        text += f", {share_of:.2f} x its parts"
    if entry["rounds"] == 1:
        text += ", one round"
    return text


def tables(results: Results, sizes: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield titles and lines: ours and the peers for each size, and what could not be measured."""
    for title, contenders in (("clipseq", OURS), ("peers", PEERS)):
        lines = [
            line(entry)
            for size in sizes
            for label in contenders
            for padding in PADDINGS
            if (entry := results.entries.get((label, size, padding))) and "skipped" not in entry
        ]
        if lines:
            yield f"{title}: forward and backward, medians", lines
    missing = [entry for entry in results.entries.values() if "skipped" in entry]
    if missing:
        yield "not measured", [line(entry) for entry in missing if entry["size"] in sizes]
    notes = [f"{peer.label}: {peer.note}" for peer in PEERS.values() if peer.note]
    if results.entries:
        yield "not the same as ours", notes
