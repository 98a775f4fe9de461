"""Peak memory of one training step with the demo's towers, by batch and micro-batch.

    python benchmarks/micro_batches.py [SIMILARITY ...]

Each step runs in a process of its own, on maps and captions as long as the demo's. It reports the
peak of torch's allocator during forward and backward, without the model, its gradients and the
batch: what the towers, the losses and the similarity take. "plain" is CLIP without sequences. The
first row of each similarity is a batch that fits without micro-batches.
"""

import subprocess
import sys
from pathlib import Path

import torch

SIZES = ((64, 0), (512, 64), (512, 16))
SIMILARITIES = ("plain", "global", "local", "combined")
CAPTION = "a person walks {} steps , then waves with both hands , and then sits down on the floor"


def measure(similarity: str, items: int, micro_batch: int) -> tuple[float, float]:
    """Return the MiB of the batch, and of the step."""
    from clipseq.demo import COMBINED, FULL, demo_configs
    from clipseq.encoders import train_tokenizer
    from clipseq.testing.checks.memory import peak_bytes
    from clipseq.training.models import build_model

    torch.set_num_threads(1)
    torch.manual_seed(0)
    table = dict(demo_configs(Path(), FULL)[COMBINED].model)
    if similarity == "plain":
        table["use_sequence_similarity"] = False
    elif similarity != "combined":
        table |= {"sequence_similarity_type": similarity, "sequence_similarity_options": {}}
    views = {"range_time": 64, "doppler_time": 64, "azimuth_time": 32}
    captions = [CAPTION.format(i) for i in range(items)]
    model = build_model(table, views, train_tokenizer(captions, kind="word"))

    def batch(size: int) -> dict:
        radar = {name: torch.randn(size, bins, 160) for name, bins in views.items()}
        return {"radar": radar, "text": captions[:size]}

    model.training_step(batch(2)).backward()  # allocates the gradients
    model.micro_batch = micro_batch or None
    whole = batch(items)
    peak = peak_bytes(lambda: model.training_step(whole).backward())
    return sum(view.nbytes for view in whole["radar"].values()) / 2**20, peak / 2**20


def main(similarities: tuple[str, ...]) -> None:
    for similarity in similarities:
        first = 0.0
        for items, micro_batch in SIZES:
            command = [sys.executable, __file__, "--one", similarity, str(items), str(micro_batch)]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            given, peak = (float(number) for number in output.splitlines()[-1].split())
            first = first or peak
            print(
                f"{similarity:10} batch {items:4} micro_batch {micro_batch or '-':>3} "
                f"maps {given:5.1f} MiB  step {peak:6.1f} MiB  {peak / first:5.2f} x",
                flush=True,
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(*measure(sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
    else:
        main(tuple(sys.argv[1:]) or SIMILARITIES)
