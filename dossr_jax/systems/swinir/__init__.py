"""SwinIR for real photos: x4, and DiffBIR's first stage, which keeps the size."""
