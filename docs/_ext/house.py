"""The directive ``{house}``: the rooms of clipseq as a drawing that is checked against the code.

Its content is one row per line, from top to bottom, with ``room: purpose`` for each room and ``|``
between rooms of one row. Where the page is read as plain Markdown, it stays text. On the site it
becomes an SVG with an arrow for each import between rooms, except those that follow from other
arrows.

The directive warns, which is an error in ``make docs``, if a room is missing, does not exist, or
imports a room that is not below it.
"""

import ast
import html
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

import clipseq

logger = logging.getLogger(__name__)

PACKAGE = Path(clipseq.__file__).parent
FACE = {"__init__", "__main__"}
"""Modules that are entrances of the house, not rooms in it."""

WIDTH, HEIGHT, GAP, MARGIN, LANE = 660, 42, 22, 80, 12
"""Sizes in pixels: width and height of a row, gaps between rows, at the sides, between arrows."""

EVERYWHERE = "errors"
"""A room that nearly all others import, so that arrows to it would not say anything."""


@attrs.frozen
class Box:
    """A room in the drawing: its name, its purpose, and the place of its box."""

    name: str
    purpose: str
    row: int
    left: float
    width: float

    @property
    def top(self) -> float:
        """Its upper edge."""
        return 4 + self.row * (HEIGHT + GAP)

    @property
    def middle(self) -> float:
        """The middle between its left and its right edge."""
        return self.left + self.width / 2


def rooms() -> dict[str, list[Path]]:
    """Return room -> its files; rooms are the packages and modules directly below clipseq."""
    found = {}
    for path in sorted(PACKAGE.iterdir()):
        if path.is_dir() and (path / "__init__.py").exists():
            found[path.name] = sorted(path.rglob("*.py"))
        elif path.suffix == ".py" and path.stem not in FACE:
            found[path.stem] = [path]
    return found


def imported_rooms(source: str) -> Iterator[str]:
    """Yield the rooms that a module imports at run time."""
    nodes_to_visit: list[ast.AST] = [ast.parse(source)]
    while nodes_to_visit:
        node = nodes_to_visit.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        nodes_to_visit += ast.iter_child_nodes(node)
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "clipseq":
            names = [f"clipseq.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for name in names:
            package, _, rest = name.partition(".")
            if package == "clipseq" and rest:
                yield rest.partition(".")[0]


def imports() -> dict[str, set[str]]:
    """Return room -> the other rooms that it imports."""
    files = rooms()
    return {
        room: {
            other
            for path in paths
            for other in imported_rooms(path.read_text(encoding="utf-8"))
            if other in files and other != room
        }
        for room, paths in files.items()
    }


def essential(graph: Mapping[str, set[str]]) -> list[tuple[str, str]]:
    """Return the edges of a graph without circles that do not follow from longer paths."""

    def reach(room: str) -> set[str]:
        found, waiting = set(), list(graph[room])
        while waiting:
            other = waiting.pop()
            if other not in found:
                found.add(other)
                waiting += graph[other]
        return found

    return [
        (room, other)
        for room, others in graph.items()
        for other in sorted(others)
        if not any(other in reach(between) for between in others if between != other)
    ]


def read(lines: list[str]) -> list[Box]:
    """Return the boxes of a drawing."""
    boxes = []
    for row, line in enumerate(line for line in lines if line.strip()):
        entries = [entry.split(":", 1) for entry in line.split("|")]
        width = (WIDTH - GAP * (len(entries) - 1)) / len(entries)
        for column, (name, *purpose) in enumerate(entries):
            left = MARGIN + column * (width + GAP)
            boxes.append(Box(name.strip(), "".join(purpose).strip(), row, left, width))
    return boxes


def problems(boxes: list[Box], graph: Mapping[str, set[str]]) -> Iterator[str]:
    """Yield the differences between a drawing and the code."""
    rows = {box.name: box.row for box in boxes}
    for name in sorted(graph.keys() - rows.keys()):
        yield f"the room {name} is missing from the drawing"
    for name in sorted(rows.keys() - graph.keys()):
        yield f"the drawing has a room {name} that does not exist"
    for room, others in graph.items():
        for other in sorted(others):
            if room in rows and other in rows and rows[other] <= rows[room]:
                yield f"{room} imports {other}, which is not below it in the drawing"


def _side(upper: Box, lower: Box, lanes: Mapping[str, int]) -> str:
    """Return the side on which an arrow passes the rows between two boxes."""
    for box in (lower, upper):
        if box.left > MARGIN:
            return "right"
        if box.left + box.width < MARGIN + WIDTH - 1:
            return "left"
    return min(lanes, key=lambda side: lanes[side])


def svg(boxes: list[Box], edges: list[tuple[str, str]]) -> str:
    """Return the drawing as SVG."""
    by_name = {box.name: box for box in boxes}
    height = max(box.top for box in boxes) + HEIGHT + 6
    parts = [
        f'<svg class="house" role="img" viewBox="0 0 {WIDTH + 2 * MARGIN} {height:.0f}" '
        'xmlns="http://www.w3.org/2000/svg"><title>The rooms of clipseq and their imports</title>'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto-start-reverse"><path d="M0 0 8 4 0 8Z"/></marker></defs>'
    ]
    lanes = {"left": 0, "right": 0}
    # The shortest arrow takes the lane next to the boxes.
    for start, end in sorted(edges, key=lambda e: by_name[e[1]].row - by_name[e[0]].row):
        upper, lower = by_name[start], by_name[end]
        if lower.row == upper.row + 1:
            # The arrow goes straight down, from the middle of the narrower box.
            x = min(upper, lower, key=lambda box: box.width).middle
            path = f"M{x:.0f} {upper.top + HEIGHT}V{lower.top}"
        else:
            side = _side(upper, lower, lanes)
            lanes[side] += 1
            out = 4 + LANE * lanes[side]
            edge, sign = (MARGIN + WIDTH, 1) if side == "right" else (MARGIN, -1)
            x1, x2 = (box.left + (box.width if sign > 0 else 0) for box in (upper, lower))
            y1 = upper.top + HEIGHT - 5 - 4 * (lanes[side] % 4)
            y2 = lower.top + 5 + 4 * (lanes[side] % 4)
            path = f"M{x1:.0f} {y1}H{edge + sign * out}V{y2}H{x2:.0f}"
        parts.append(f'<path class="arrow" d="{path}" marker-end="url(#tip)"/>')
    for box in boxes:
        label = box.name if (PACKAGE / box.name).is_dir() else f"{box.name}.py"
        parts.append(
            f'<g><rect x="{box.left:.0f}" y="{box.top}" width="{box.width:.0f}" '
            f'height="{HEIGHT}" rx="5"/><text class="room" x="{box.middle:.0f}" '
            f'y="{box.top + 17}">{label}</text><text x="{box.middle:.0f}" '
            f'y="{box.top + 33}">{html.escape(box.purpose)}</text></g>'
        )
    return "".join([*parts, "</svg>"])


class House(SphinxDirective):
    """The drawing of the rooms, checked against the imports of the code."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Return the SVG, and warn of its differences from the code."""
        self.env.note_reread()  # the imports may have changed although the page has not
        boxes, graph = read(list(self.content)), imports()
        found = list(problems(boxes, graph))
        for problem in found:
            logger.warning("%s", problem, location=self.get_location())
        drawn = (
            ""
            if found
            else svg(boxes, [edge for edge in essential(graph) if edge[1] != EVERYWHERE])
        )
        return [nodes.raw("", drawn, format="html")]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("house", House)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
