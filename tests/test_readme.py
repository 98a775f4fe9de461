"""The README's code runs as it stands."""

import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"


@pytest.mark.skipif(not README.exists(), reason="the tests were copied without the README")
def test_the_readmes_python_runs_top_to_bottom(fresh_registry):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 4
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    import clipseq
    from clipseq.testing import CHECKS

    clipseq.register_similarity("mean", names["MeanSimilarity"])
    CHECKS["padding_content"].run("mean")
    CHECKS["range"].run("mean")
