"""Training runs on lightning (extra `train`): `train` a `RunConfig`, leave a run folder."""

from clipseq.training.config import (
    DataConfig,
    RunConfig,
    SimulatedData,
    TrainingConfig,
    read_config,
    write_config,
)
from clipseq.training.fit import train
from clipseq.training.folder import RunFolder
from clipseq.training.interruption import TrainingInterrupted

__all__ = [
    "DataConfig",
    "RunConfig",
    "RunFolder",
    "SimulatedData",
    "TrainingConfig",
    "TrainingInterrupted",
    "read_config",
    "train",
    "write_config",
]
