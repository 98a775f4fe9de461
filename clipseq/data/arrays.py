"""Arrays of an .npz archive, read without pickle."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from clipseq.errors import DataError

_CORRUPT = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return all arrays of an .npz; raise DataError with the file's name if one cannot be read."""
    try:
        # np.load treats any other file as a pickle.
        if not zipfile.is_zipfile(path):
            raise ValueError("not an .npz archive" if path.exists() else "no such file")
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except _CORRUPT as error:
        raise DataError(f"{path} is missing or corrupt: {error}; copy or write it again") from error
