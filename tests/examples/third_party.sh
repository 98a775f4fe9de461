#!/usr/bin/env bash
# Follow a third party's plugin: install it, combine, train and save it, uninstall it, and miss it.
#
# usage: third_party.sh PYTHON
# PYTHON belongs to an environment of its own, with clipseq[train,testing] installed from its wheel.
# The script leaves the environment unchanged.
set -euo pipefail
python=$(realpath --no-symlinks "$1")
examples=$(realpath "$(dirname "$0")/../../docs/examples")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"  # so that no source tree stands in for what is installed
export PIP_DISABLE_PIP_VERSION_CHECK=1 OMP_NUM_THREADS=1  # all computations here are small

cp -r "$examples/clipseq-sinkhorn" .  # a build leaves nothing in the tree
"$python" -m pip install --quiet ./clipseq-sinkhorn
"$python" -m clipseq similarities --json | grep '"distribution": "clipseq-sinkhorn"'
"$python" -m pytest -q -p no:cacheprovider --clipseq-check sinkhorn --clipseq-examples 5

cat > model.py <<'PYTHON'
import torch
from clipseq import CLIP, SignalConfig, TextConfig, available_similarities

info = available_similarities()["sinkhorn"]
assert (info.distribution, info.cls.__module__) == ("clipseq-sinkhorn", "clipseq_sinkhorn"), info

torch.manual_seed(0)
model = CLIP(
    SignalConfig(views={"range_time": 8}, patch_frames=4),
    TextConfig(),
    context_length=20,
    transformer_width=16,
    transformer_layers=1,
    transformer_heads=2,
    sequence_similarity_type="combined",
)
weights = model.sequence_loss_fn.similarity_fn.weights
assert abs(weights["sinkhorn"] - info.default_weight) < 1e-6, weights
print("weighed:", weights)

batch = {"radar": {"range_time": torch.randn(3, 8, 24)}, "text": ["walks", "sits", "falls"]}
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
losses = []
for step in range(10):
    loss = model.training_step(batch, step)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
assert losses[-1] < losses[0], losses
moved = model.sequence_loss_fn.similarity_fn.weights["sinkhorn"]
assert moved != weights["sinkhorn"], "its weight was not trained"
print("trained:", *(f"{loss:.3f}" for loss in losses), "its weight is", f"{moved:.4f}")

model.eval().save_pretrained("saved")
again = CLIP.from_pretrained("saved")
radar, text = batch["radar"], batch["text"]
assert torch.equal(again.similarity(radar, text), model.similarity(radar, text))
print("saved and loaded")
PYTHON
"$python" model.py

"$python" -m pip uninstall --quiet --yes clipseq-sinkhorn
cat > missed.py <<'PYTHON'
import clipseq

assert "sinkhorn" not in clipseq.available_similarities()
try:
    clipseq.CLIP.from_pretrained("saved")
except clipseq.CheckpointError as error:
    assert "sinkhorn" in str(error) and "clipseq-sinkhorn" in str(error), error
    print("missed:", error)
else:
    raise SystemExit("a model was loaded without the plugin that it needs")
PYTHON
"$python" missed.py

"$python" -m clipseq new-plugin made_here
"$python" -m pip install --quiet ./clipseq-made-here
"$python" -m clipseq similarities --json | grep '"distribution": "clipseq-made-here"'
# The tests of the scaffold check the contract.
(cd clipseq-made-here && "$python" -m pytest -q -p no:cacheprovider -k "not contract")
"$python" -m pip uninstall --quiet --yes clipseq-made-here
