"""Small models of two sides, and recordings of different lengths for them."""

import numpy as np
import pytest
import torch

from clipseq import CLIP

SIZE = {"transformer_width": 8, "transformer_layers": 1, "transformer_heads": 2}
VIEWS = {"range_time": 4, "doppler_time": 3}


@pytest.fixture(scope="session")
def model() -> CLIP:
    torch.manual_seed(1)
    return CLIP({"views": VIEWS, "patch_frames": 4}, context_length=64, **SIZE).eval()


@pytest.fixture(scope="session")
def recordings() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    lengths = [9, 30, 1, 17, 30, 4, 22]
    return [
        {view: rng.normal(size=(bins, t)).astype(np.float32) for view, bins in VIEWS.items()}
        for t in lengths
    ]


@pytest.fixture(scope="session")
def captions() -> list[str]:
    return ["walks", "a person sits down, then waves", "waves", "walks", "stands up and turns", "x"]
