"""Bytes sent and pairs scored per rank and training step, with the formulas of docs/scaling.

    python benchmarks/scaling.py

starts 2, then 3, then 4 processes on this machine (gloo); one process alone sends nothing. It does
not measure time, because the processes share the cores of one machine and no network lies between
them.
"""

import datetime
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import clipseq
from clipseq.distributed import Traffic, count_traffic

ITEMS, T, L, D = 12, 62, 20, 256
NAMES = ("global", "local", "attention", "temporal", "combined")


def per_item(name: str) -> tuple[int, int]:
    """Return the bytes of one prepared y without padding, and of its gradient."""
    steps, vector, windows = 4 * L * D, 4 * D, L - 16 + 1
    gradient = {
        "global": vector,
        "local": 4 * windows * D,
        "attention": steps,
        "temporal": steps,
        # attention and temporal compare the same steps, which travel once.
        "combined": vector + 4 * windows * D + steps,
    }[name]
    masks = {"global": 0, "local": windows, "attention": L, "temporal": L, "combined": windows + L}
    return gradient + masks[name] + 1, gradient  # and one flag: whether it has a real step


CASES = [(name, gather) for name in NAMES for gather in ("ring", "all")]


def steps(rank: int, ranks: int, folder: str) -> None:
    """Run one step of every case, as one of several processes."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=ranks,
        timeout=datetime.timedelta(seconds=60),
    )
    torch.manual_seed(rank)
    x, y = torch.randn(ITEMS, T, D).requires_grad_(), torch.randn(ITEMS, L, D).requires_grad_()
    counted = []
    for name, gather in CASES:
        similarity = clipseq.get_similarity(name)
        with count_traffic() as traffic:
            clipseq.SequenceLoss(similarity, gather=gather)(x, y).backward()
        counted.append(traffic)
    if rank == 0:
        torch.save(counted, f"{folder}/counted.pt")
    dist.destroy_process_group()


def counted(ranks: int) -> list[Traffic]:
    """Return the traffic of the first rank, case by case."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(steps, (ranks, folder), nprocs=ranks)
        found: list[Traffic] = torch.load(Path(folder) / "counted.pt", weights_only=False)
        return found


def main() -> None:
    worlds = {ranks: counted(ranks) for ranks in (2, 3, 4)}
    print(
        "| similarity | gather | W | blocks | formula | gradients | formula | pairs | B·N | held |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for k, (name, gather) in enumerate(CASES):
        block, gradient = per_item(name)
        for ranks, found in worlds.items():
            traffic = found[k]
            times = 2 if gather == "ring" else 1
            blocks = times * (ranks - 1) * ITEMS * block
            gradients = (ranks - 1) * ITEMS * gradient
            print(
                f"| `{name}` | {gather} | {ranks} | {traffic.blocks} | {blocks} | "
                f"{traffic.gradients} | {gradients} | {traffic.pairs} | "
                f"{ranks * ITEMS * ITEMS} | {traffic.held} |"
            )


if __name__ == "__main__":
    main()
