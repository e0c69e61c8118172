"""Training data: photos, sources of images, batches of crops, and their degradation."""
