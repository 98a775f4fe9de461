"""One rank of a world of two whose options differ; each case must be an error that names them."""

import pytest
import torch
import torch.distributed as dist

import clipseq

CASES = {
    "options": "the similarity, got LocalSimilarity(window=1",
    "similarity": "the similarity, got LocalSimilarity(",
    "features": "the number of features, got 8 and 7",
    "dtype": "the dtype, got torch.float32 and torch.float64",
    "gather": "gather, got ring and all",
    "kind": "the loss, got ClipLoss and SigLipLoss",
    "pooled": "the number of features, got 8 and 7",
    "parts": "the similarity, got CombinedSimilarity(",
}


def loss_of(case, other):
    features = 8 - (case in ("features", "pooled")) * other
    dtype = torch.float64 if case == "dtype" and other else torch.float32
    x, y = torch.randn(3, 6, features, dtype=dtype), torch.randn(3, 5, features, dtype=dtype)
    if case == "pooled":
        return clipseq.ClipLoss()(x[:, 0], y[:, 0])
    name = "temporal" if case == "similarity" and other else "local"
    options = {"window": 1 + 2 * other} if case == "options" else {}
    if case == "parts":
        parts = {"global": {}, "temporal": {}} if other else {"global": {}, "local": {}}
        name, options = "combined", {"parts": parts}
    return clipseq.SequenceLoss(
        clipseq.get_similarity(name, **options),
        "siglip" if case == "kind" and other else "clip",
        gather="all" if case == "gather" and other else "ring",
    )(x, y)


def main(folder, rank, ranks):
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks
    )
    for case, expected in CASES.items():
        with pytest.raises(clipseq.ClipseqError) as caught:
            loss_of(case, rank)
        assert expected in str(caught.value), f"{case}: {caught.value}"
    # After all of these, the ranks still agree about what comes next.
    assert torch.isfinite(loss_of("", 0))
    dist.destroy_process_group()
