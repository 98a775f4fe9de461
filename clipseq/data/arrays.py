"""Files of a data set: regular files, JSON with its errors named, and arrays without pickle."""

import json
import math
import stat
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from clipseq.errors import DataError

_CORRUPT = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    SyntaxError,
    tokenize.TokenError,
    RuntimeError,  # an encrypted member, or another method of compression
    MemoryError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


def inside(folder: Path, name: str, at: str) -> Path:
    """Return the path of a file that a data set names, relative to its folder.

    Raises:
        DataError: the name leads out of the folder; the error begins with `at`.
    """
    for kind in (PurePosixPath, PureWindowsPath):
        pure = kind(name)
        if pure.is_absolute() or pure.drive or ".." in pure.parts or "\0" in name or not name:
            raise DataError(
                f"{at}: a file must be named relative to the folder of the data set, without '..', "
                f"got {name!r}; move the file there"
            )
    return folder / name


def check_regular(path: Path) -> None:
    """Raise DataError if `path` is a pipe, a device or a folder, and not a regular file."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not stat.S_ISREG(mode):
        kinds = {
            stat.S_IFDIR: "a folder",
            stat.S_IFIFO: "a pipe",
            stat.S_IFSOCK: "a socket",
            stat.S_IFCHR: "a device",
            stat.S_IFBLK: "a device",
        }
        what = kinds.get(stat.S_IFMT(mode), "something else")
        raise DataError(f"{path} must be a regular file, got {what}; put the file itself there")


def read_text(path: Path) -> str:
    """Read a text file of a data set.

    Raises:
        DataError: it is no regular file, or not in UTF-8.
        OSError: it cannot be read.
    """
    check_regular(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} must be in UTF-8, got {error}; save it in UTF-8") from error


def parse_json(text: str) -> Any:
    """Parse JSON; a key that is given twice, NaN, infinity and deep nesting are errors.

    Raises:
        ValueError: the text is not JSON.
    """
    try:
        return json.loads(text, object_pairs_hook=_each_key_once, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # json silently keeps the last of several equal keys.
    record: dict[str, Any] = {}
    for key, value in pairs:
        if key in record:
            raise ValueError(f"the key {key!r} is given twice")
        record[key] = value
    return record


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def check_rate(rate: Any, what: str) -> None:
    """Raise DataError unless `rate` is a number of frames per second, or None."""
    if rate is None:
        return
    number = isinstance(rate, int | float | np.integer | np.floating) and type(rate) is not bool
    if not number or not 0 < rate < math.inf:
        raise DataError(
            f"{what} must be a positive, finite number of frames per second, got {rate!r}; leave "
            "it out if it is unknown"
        )


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return all arrays of an .npz; raise DataError with the file's name if one cannot be read."""
    check_regular(path)
    try:
        # np.load treats any other file as a pickle.
        if not zipfile.is_zipfile(path):
            raise ValueError("not an .npz archive" if path.exists() else "no such file")
        with zipfile.ZipFile(path) as archive:
            members = _members(archive)
            return {name: _read(archive, member, name) for name, member in members.items()}
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except _CORRUPT as error:
        raise DataError(
            f"{path} is missing or corrupt: {str(error) or type(error).__name__}; copy or write it "
            "again"
        ) from error


def _members(archive: zipfile.ZipFile) -> Mapping[str, zipfile.ZipInfo]:
    """Return the members of an archive by the names of their arrays."""
    found: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        name = member.filename.removesuffix(".npy")
        if name == member.filename:
            raise DataError(
                f"every member must be an array NAME.npy, got {member.filename!r}; write the file "
                "with np.savez"
            )
        if name in found:
            raise DataError(f"the array {name!r} must be there once, got it twice; remove one")
        found[name] = member
    return found


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> np.ndarray:
    """Read one array, after its header has been compared with its size."""
    with archive.open(member) as file:
        shape, dtype = _header(file, name)
        size = math.prod(shape) * dtype.itemsize
        if size != member.file_size - file.tell():
            raise DataError(
                f"the array {name!r} must hold the {size} bytes of its shape {shape} and type "
                f"{dtype}, got {member.file_size - file.tell()}; write it again"
            )
    with archive.open(member) as file:
        array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
        if file.read(1):
            raise DataError(f"the array {name!r} must end where its shape {shape} does")
    return array


def _header(file: Any, name: str) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise DataError(
            f"the array {name!r} must be of version 1.0 or 2.0 of NumPy's format, got {version}"
        )
    if dtype.hasobject or dtype.names is not None:
        raise DataError(
            f"the array {name!r} must hold numbers or strings of fixed length, got {dtype}, which "
            "would need pickle or has fields; turn lists of strings into arrays with "
            "np.array(strings, dtype=str)"
        )
    if not all(isinstance(n, int) and n >= 0 for n in shape):
        raise DataError(f"the array {name!r} must have a shape of whole numbers, got {shape}")
    return shape, dtype
