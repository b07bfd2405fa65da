"""Where the tests find the repository and what lies beside it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
"""Golden values, real data and weights; tests that need them are skipped with a reason where they are absent."""
GOLDEN = SHARED / "golden"
METHODS_GOLDEN = SHARED / "methods" / "golden"
WEIGHTS = SHARED / "weights" / "tf_efficientnet_lite0.pth"
