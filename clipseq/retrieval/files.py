"""The file of encoded items: safetensors, memory-mapped when it is read; never pickle.

Its metadata names the format and its version, the side and the fingerprint of the model. Its
tensors are

pooled              (N, D)
steps               (S, D) the steps of all sequences, if there are any
steps_offsets       (N + 1,) int64
ids                 (..,) uint8, the UTF-8 bytes of all ids
ids_offsets         (N + 1,) int64
"""

import os
import tempfile
from pathlib import Path

import attrs
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from clipseq.errors import DataError

FORMAT, VERSION = "clipseq.encoded", "1"

Flat = tuple[Tensor, Tensor]
"""The values and the offsets of items of different lengths."""


@attrs.frozen(eq=False)
class Saved:
    """The content of a file."""

    pooled: Tensor
    steps: Flat | None
    ids: Flat
    side: str
    model: str


def write(path: Path, saved: Saved) -> None:
    """Write a file under another name, and move it into place once it is complete on the disk."""
    tensors = {"pooled": saved.pooled, "ids": saved.ids[0], "ids_offsets": saved.ids[1]}
    if saved.steps is not None:
        tensors |= {"steps": saved.steps[0], "steps_offsets": saved.steps[1]}
    metadata = {"format": FORMAT, "version": VERSION, "side": saved.side, "model": saved.model}
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent)
    with folder as name:
        written = Path(name) / path.name
        whole = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        save_file(whole, written, metadata=metadata)
        with written.open("rb+") as file:
            os.fsync(file.fileno())
        # safetensors creates files that only the owner may read, whatever the umask.
        mask = os.umask(0)
        os.umask(mask)
        written.chmod(0o666 & ~mask)
        os.replace(written, path)


def read(path: Path) -> Saved:
    """Map a file into memory.

    Raises:
        DataError: it is missing, unreadable, corrupt, or of another format or version.
    """
    try:
        path.open("rb").close()  # safetensors calls an unreadable file missing
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            _check_format(path, metadata)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise DataError(f"path must be a file of encoded items, got {path}, which does not exist")  # noqa: B904
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise DataError(
            f"path must be a file that Encoded.save wrote, got {path}, which is corrupt or no "
            f"safetensors file: {error}"
        ) from error
    try:
        pooled, ids = tensors["pooled"], _flat(tensors, "ids")
        steps = _flat(tensors, "steps") if "steps" in tensors else None
    except (KeyError, ValueError) as error:
        raise DataError(f"{path} is not complete: {error}") from error
    return Saved(pooled, steps, ids, metadata.get("side", ""), metadata.get("model", ""))


def _check_format(path: Path, metadata: dict[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise DataError(
            f"path must be a file that Encoded.save wrote, got {path}, a safetensors file of "
            f"something else"
        )
    if metadata.get("version") != VERSION:
        raise DataError(
            f"{path} must be of version {VERSION} of its format, got version "
            f"{metadata.get('version')}; encode the items again, or install the clipseq that wrote "
            f"it"
        )


def _flat(tensors: dict[str, Tensor], name: str) -> Flat:
    values, offsets = tensors[name], tensors[f"{name}_offsets"]
    fits = offsets.dtype == torch.int64 and len(offsets) and int(offsets[0]) == 0
    if not fits or bool((offsets.diff() < 0).any()) or int(offsets[-1]) != len(values):
        raise ValueError(f"the offsets of {name} do not fit its {len(values)} rows")
    return values, offsets
