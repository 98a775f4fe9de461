"""Imports between the rooms of clipseq run one way, and no two modules import each other."""

from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from imports import imported_modules, module_files

import clipseq

PACKAGE = Path(clipseq.__file__).parent
FILES = module_files(PACKAGE.parent, "clipseq")

# The rows, from bottom to top. A room imports from rows below its own, never from its own row.
LAYERS = (
    ("errors",),
    ("config", "engine"),
    ("sequences",),
    ("similarity",),
    ("distributed", "bridges"),
    ("losses",),
    ("registry",),
    ("encoders", "sequence_loss"),
    ("data",),
    ("augment", "figures", "retrieval"),
    ("model",),
    ("face",),
    ("evaluation",),
    ("training",),
    ("demo", "testing"),
    ("cli",),
    ("__main__",),
)
"""The rooms; a loose module is a room of its own, and "face" is `clipseq/__init__.py`."""

ONLY = {
    # Authors of fast similarities rely on the engine alone.
    "engine": {"errors"},
    # The kit checks similarities. It uses the loss to see what two processes exchange.
    "testing": {
        "errors",
        "engine",
        "sequences",
        "similarity",
        "distributed",
        "losses",
        "registry",
        "sequence_loss",
    },
    # It starts the command line, and says what to install if the command line's libraries are
    # missing.
    "__main__": {"cli"},
}
"""Rooms that may not import everything below them, with the rooms that they may import."""

HEIGHT = {room: height for height, row in enumerate(LAYERS) for room in row}


def room_of(module: str) -> str:
    """Return the room that a module is in."""
    return "face" if module == "clipseq" else module.split(".")[1]


def may_import(room: str, other: str) -> bool:
    """Return whether a module in `room` may import one in `other`."""
    if room == other:
        return True
    return HEIGHT[other] < HEIGHT[room] and other in ONLY.get(room, HEIGHT)


def test_every_room_has_its_place() -> None:
    unplaced = {room_of(module) for module in FILES} - set(HEIGHT)
    assert not unplaced, f"add these rooms to LAYERS: {sorted(unplaced)}"


def test_imports_between_rooms_run_downwards() -> None:
    upwards = [
        f"{FILES[module].relative_to(PACKAGE)}:{line} imports {target}"
        for module in FILES
        for target, line in imported_modules(module, FILES).items()
        if not may_import(room_of(module), room_of(target))
    ]
    assert not upwards, "\n".join(upwards)


def test_no_modules_import_each_other() -> None:
    # Imports inside functions count, as do those of a lazy `__getattr__`: they hide circles.
    graph = {module: set(imported_modules(module, FILES)) for module in FILES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(" is imported by ".join(error.args[1])) from None


def test_the_model_reads_from_top_to_bottom() -> None:
    lines = (PACKAGE / "model" / "clip.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 350, (
        "move what a training step does not need into clipseq/model/at_work.py"
    )


def test_few_modules_are_loose() -> None:
    loose = sorted(file.name for file in PACKAGE.glob("*.py"))
    assert len(loose) <= 8, loose
