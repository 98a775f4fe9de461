"""Clips of signals with captions: simulate, splice, read, write and batch them."""

from clipseq.data.batches import collate
from clipseq.data.clip import SPLITS, Clip
from clipseq.data.dataset import MapDataset
from clipseq.data.folder_format import write_dataset
from clipseq.data.header import Axis, Header
from clipseq.data.radhar import radhar_dataset
from clipseq.data.simulation.clips import simulate
from clipseq.data.simulation.radar import Radar

__all__ = [
    "SPLITS",
    "Axis",
    "Clip",
    "Header",
    "MapDataset",
    "Radar",
    "collate",
    "radhar_dataset",
    "simulate",
    "write_dataset",
]
