"""Training runs (extra `train`): `train` takes a `RunConfig` and leaves a run folder."""

from clipseq.training.config import (
    DataConfig,
    RunConfig,
    SimulatedData,
    TrainingConfig,
    read_config,
    write_config,
)
from clipseq.training.fit import plan, train
from clipseq.training.folder import RunFolder
from clipseq.training.launch.interruption import TrainingInterrupted, TrainingStopped
from clipseq.training.launch.processes import ProcessLost
from clipseq.training.runs import evaluate_run, load_model
from clipseq.training.summary import Summary

__all__ = [
    "DataConfig",
    "ProcessLost",
    "RunConfig",
    "RunFolder",
    "SimulatedData",
    "Summary",
    "TrainingConfig",
    "TrainingInterrupted",
    "TrainingStopped",
    "evaluate_run",
    "load_model",
    "plan",
    "read_config",
    "train",
    "write_config",
]
