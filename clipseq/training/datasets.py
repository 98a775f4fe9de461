"""Data sets of a run: the clips that [data] of its configuration describes."""

import zipfile
from collections.abc import Callable
from pathlib import Path

from clipseq.data import MapDataset, radhar, radhar_dataset, simulate
from clipseq.data.clip import TEXT
from clipseq.errors import DataError
from clipseq.model import ModelConfig
from clipseq.training.config import DataConfig
from clipseq.training.folder import RunFolder


def open_dataset(
    config: DataConfig,
    folder: RunFolder,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> MapDataset:
    """Return the clips that `config` describes.

    A simulated set is written into the run folder, or read from there if it is already complete,
    as it usually is on resume.

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


def check_captions_exist(dataset: MapDataset, model: ModelConfig) -> None:
    """Raise DataError if a tokenizer is to be trained on captions that the data set lacks."""
    if model.takes_tokenizer and TEXT not in dataset.modalities:
        raise DataError(
            f"the data set must hold captions for a model of {' and '.join(model.names)}, got "
            f"{' and '.join(dataset.modalities)} without captions; add them, or make the text "
            'side a signal with tower = "signal" and the name of its modality'
        )


def open_path(path: Path) -> MapDataset:
    """Open a data set on disk; splice an .npz of recordings (`radhar_maps`) into sequences."""
    if path.is_file() and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if f"{radhar.VIEWS[0]}.npy" in archive.namelist():
                return radhar_dataset(path)
    return MapDataset(path)
