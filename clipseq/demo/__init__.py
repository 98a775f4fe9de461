"""The demo: plain CLIP and CLIP with `combined` on the same simulated radar and captions.

Read `run` first: it leads from the simulated data to the report. `configs` holds the two training
runs, `alignment` and `figures` the analysis, `report` the results, and `folder` the paths.
"""

from clipseq.demo.configs import COMBINED, FULL, PLAIN, SMALL, demo_configs
from clipseq.demo.run import run_demo

__all__ = ["COMBINED", "FULL", "PLAIN", "SMALL", "demo_configs", "run_demo"]
