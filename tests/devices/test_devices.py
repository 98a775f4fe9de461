"""Everything runs on a device without float64, as Apple's are, and gives the CPU's numbers."""

import pytest
import torch
from other_device import DEVICE, Refused, There, other_device

import clipseq
from clipseq import CLIP, ClipLoss, SequenceLoss, SigLipLoss
from clipseq.data import MapDataset, simulate
from clipseq.evaluation import evaluate
from clipseq.evaluation.metrics import (
    mean_estimate,
    median_estimate,
    order_counts,
    resamples,
    retrieval_estimates,
    retrieval_ranks,
    zero_shot_correct,
)

SIMILARITIES = [
    ("global", {}),
    ("local", {}),
    ("local", {"window": 1}),
    ("attention", {}),
    ("attention", {"temperature": 0.01}),
    ("temporal", {}),
    ("temporal", {"band": 0.1}),
    ("temporal", {"gamma": 0.01}),
    ("combined", {}),
]


def assert_alike(found, expected, tolerance=1e-5):
    for value, other in zip(found, expected, strict=True):
        assert isinstance(value, There)
        # The gradients of scalars are differences of sums of about 1.
        size = other.abs().max().clamp(min=1.0 if other.numel() == 1 else 1e-3)
        assert (value.cpu() - other).abs().max() <= tolerance * size


@pytest.mark.parametrize(("name", "options"), SIMILARITIES)
def test_similarities_need_no_float64(name, options):
    x, y = torch.randn(3, 30, 16), torch.randn(3, 25, 16)
    x_mask = torch.arange(30) < torch.tensor([30, 7, 12])[:, None]

    def everything(device):
        similarity = clipseq.get_similarity(name, **options)
        loss = SequenceLoss(similarity).to(device)
        one, two, mask = (side.clone().to(device) for side in (x, y, x_mask))
        found = similarity.explain(one, two, mask)
        pairs = similarity.pairs(one, two, mask)
        one.requires_grad_()
        two.requires_grad_()
        total = loss(one, two, mask)
        total.backward()
        grads = [value.grad for value in (one, two, *loss.parameters())]
        return [found.score, found.weights, pairs, total.detach(), *grads]

    expected = everything("cpu")
    with other_device():
        assert_alike(everything(DEVICE), expected)


@pytest.mark.parametrize("loss", [ClipLoss, SigLipLoss])
def test_pooled_losses_need_no_float64(loss):
    x, y, groups = torch.randn(5, 8), torch.randn(5, 8), torch.tensor([0, 1, 1, 2, 3])

    def everything(device):
        one, two = (side.clone().to(device).requires_grad_() for side in (x, y))
        total = loss().to(device)(one, two, groups.to(device))
        total.backward()
        return total.detach(), one.grad, two.grad

    expected = everything("cpu")
    with other_device():
        assert_alike(everything(DEVICE), expected)


READS_OF_A_STEP = 12
"""Times that a training step with text waits for the device, apart from those of operators."""


def test_a_model_trains_and_is_evaluated_without_float64(tmp_path):
    shares = {"train": 0.2, "test": 0.5, "zeroshot": 0.3}
    clips = list(simulate(tmp_path / "data", 12, seconds=6.0, split_shares=shares))
    captions = {clip.label: clip.caption for clip in clips if clip.label}
    dataset = MapDataset.from_clips(clips, frame_rate=16.0, class_captions=captions)

    def everything(device, reads):
        torch.manual_seed(0)
        model = CLIP(
            {"views": dataset.views, "patch_frames": 8},
            transformer_width=8,
            transformer_layers=1,
            transformer_heads=2,
            context_length=120,
        ).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        generator = torch.Generator().manual_seed(0)
        maps = {
            name: torch.randn(4, bins, 48, generator=generator)
            for name, bins in dataset.views.items()
        }
        batch = {
            "radar": {name: values.to(device) for name, values in maps.items()},
            "radar_lengths": torch.tensor([48, 30, 9, 17]).to(device),
            "text": ["walks", "sits down", "waves", "walks"],
        }
        reads.clear()
        model.training_step(batch).backward()
        count = len(reads)
        optimizer.step()
        found = evaluate(model, dataset, batch_size=8)
        metrics = {name: float(value) for name, value in model.metrics.items()}
        return metrics, found.to_json()["metrics"], count

    metrics, evaluation, _ = everything("cpu", [])
    with other_device() as device:
        found, seen, reads = everything(DEVICE, device.reads)
    assert found == pytest.approx(metrics, rel=1e-4)
    assert seen.keys() == evaluation.keys()
    assert 0 < reads <= READS_OF_A_STEP


def test_metrics_take_scores_of_any_device():
    scores, hits = torch.randn(6, 6), torch.eye(6, dtype=torch.bool)
    draws = resamples(6, draws=20)

    def everything(device):
        ranks = retrieval_ranks(scores.to(device), hits.to(device))
        own, others = scores[0].to(device), scores[1].to(device)
        counts = order_counts(own, others, torch.arange(6).to(device))
        return (
            retrieval_estimates(ranks, draws),
            zero_shot_correct(scores.to(device), torch.arange(6)).tolist(),
            mean_estimate(own, draws),
            median_estimate(ranks, draws),
            counts.wins.tolist(),
        )

    expected = everything("cpu")
    with other_device():
        assert everything(DEVICE) == expected


def test_the_stand_in_refuses_what_a_device_refuses():
    with other_device():
        values = torch.ones(3, device=DEVICE)
        for operation in (
            lambda: values.double(),
            lambda: torch.zeros(2, dtype=torch.float64, device=DEVICE),
            lambda: values + torch.ones(3),
            lambda: values[torch.tensor([0, 1])],
        ):
            with pytest.raises(Refused):
                operation()
        assert (values + torch.tensor(1.0)).tolist() == [2.0] * 3
