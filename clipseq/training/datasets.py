"""Data sets of a run: the clips that [data] of its configuration describes."""

import zipfile
from collections.abc import Callable
from pathlib import Path

from clipseq.data import MapDataset, radhar, radhar_dataset, simulate
from clipseq.training.config import DataConfig
from clipseq.training.folder import RunFolder


def open_dataset(
    config: DataConfig,
    folder: RunFolder,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> MapDataset:
    """Return the clips that `config` describes.

    A simulated set is written into the run folder, and read from there if it is complete already,
    as it is on resume.

    Args:
        config: [data] of the run.
        folder: folder of the run.
        progress: called as progress(done, clips) while clips are simulated.

    Raises:
        DataError: a file is missing or corrupt; the error names it.
    """
    if config.path is not None:
        return MapDataset(config.path)
    if config.radhar is not None:
        return radhar_dataset(config.radhar, seed=config.seed)
    assert config.simulated is not None
    simulated = config.simulated
    return simulate(
        folder.data,
        clips=simulated.clips,
        seed=simulated.seed,
        motion=simulated.motion,
        progress=progress,
    )


def open_path(path: Path) -> MapDataset:
    """Return a data set on disk; splice an .npz of recordings (`radhar_maps`) into sequences."""
    if path.is_file() and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if f"{radhar.VIEWS[0]}.npy" in archive.namelist():
                return radhar_dataset(path)
    return MapDataset(path)
