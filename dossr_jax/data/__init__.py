"""Training data: photos cut into a bank of crops, and their degradation. Never imports jax."""
