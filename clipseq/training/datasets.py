"""From [data] of a run's configuration to clips."""

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
    """The clips that `config` describes; `progress` is told of simulated clips as they are done.

    A simulated set is written into the run folder, and read from there when it is complete
    already, as it is on resume.

    Raises:
        DataError: a missing or corrupt file, named.
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
    """A data set on disk; an .npz of real radar maps (`radhar_maps`) is spliced into sequences."""
    if path.is_file() and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if f"{radhar.VIEWS[0]}.npy" in archive.namelist():
                return radhar_dataset(path)
    return MapDataset(path)
