"""Libraries that clipseq imports on first use change nothing that the caller sees.

Each of these calls imports one: torch's compiler, Lightning, LanceDB, matplotlib, transformers.
They run in a new process, which has imported none of them.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from clipseq.training import write_config

SCRIPT = """
import json, sys, warnings
from pathlib import Path
import torch
from photograph import compare, photograph

folder, work, found = Path(sys.argv[1]), Path(sys.argv[2]), {}

def watch(name, call):
    before = photograph()
    result = call()
    found[name] = compare(before, photograph())
    return result

watch("import", lambda: __import__("clipseq.training"))
import clipseq
from clipseq.data import MapDataset
from clipseq.figures import draw_matrices
from clipseq.training import plan, read_config

assert not {"lightning", "lancedb", "transformers", "matplotlib", "torch._dynamo"} & {*sys.modules}
x = torch.ones(2, 3, 8)
watch("similarity", lambda: clipseq.get_similarity("local")(x, x))
assert "torch._dynamo" in sys.modules
model = clipseq.CLIP.from_pretrained(folder / "run" / "model")
index = watch("index", lambda: clipseq.Index.create(work / "index", model))
assert "lancedb" in sys.modules
data = MapDataset(folder / "data")
explanation = model.explain(data[0], "walks")
watch("figure", explanation.plot)
assert "matplotlib" in sys.modules
watch("tower", lambda: clipseq.CLIP(
    {"views": {"a": 4}}, {"pretrained": str(work / "bert")}, transformer_width=8,
    transformer_layers=1, transformer_heads=2))
assert "transformers" in sys.modules
watch("training", lambda: plan(read_config(work / "run.toml")))
assert "lightning" in sys.modules
print(json.dumps(found))
"""


@pytest.mark.usefixtures("unchecked_signatures")
def test_first_uses(finished, tmp_path):
    transformers = pytest.importorskip("transformers")
    (tmp_path / "bert").mkdir()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "walks"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=6, intermediate_size=8, **size)
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    write_config(finished.config(tmp_path / "other"), tmp_path / "run.toml")
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, finished.run.parent, tmp_path],
        env=os.environ | {"PYTHONPATH": f"{here}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    # A tower is created with random weights, which are the user's to seed.
    found["tower"] = [line for line in found["tower"] if not line.startswith("torch's random")]
    assert {name: changes for name, changes in found.items() if changes} == {}
