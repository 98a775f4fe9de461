"""Importing clipseq is light: it loads no plugin and none of the libraries of the extras."""

import subprocess
import sys

HEAVY = {
    *("lightning", "tensorboard", "tokenizers", "typer", "rich"),  # clipseq[train]
    *("transformers", "huggingface_hub", "matplotlib"),  # clipseq[hf,plot]
    *("lancedb", "pyarrow"),  # clipseq[search]
    *("hypothesis", "pytest", "triton", "scipy", "pandas"),
}

LOADED = """
import sys, clipseq, clipseq.engine, clipseq.registry
print(*{name.split(".")[0] for name in sys.modules})
"""


def test_an_import_loads_no_plugin_and_no_heavy_library() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", LOADED], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert "clipseq" in loaded
    assert not HEAVY & loaded
    assert not [name for name in loaded if name.startswith("clipseq_")]
