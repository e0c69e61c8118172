"""The paper's experiments, measured and drawn by benchmarks/report.py."""
