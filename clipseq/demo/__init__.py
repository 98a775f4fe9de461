"""The demo: plain CLIP and CLIP with `combined` on the same simulated radar and captions."""

from clipseq.demo.run import COMBINED, FULL, PLAIN, SMALL, demo_configs, run_demo

__all__ = ["COMBINED", "FULL", "PLAIN", "SMALL", "demo_configs", "run_demo"]
