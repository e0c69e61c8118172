"""The PyTorch networks that the benchmark times are those that systems are compared with."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # last: it has a train.py, too
