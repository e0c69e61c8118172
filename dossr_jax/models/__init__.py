"""The networks, in Flax NNX. Each file holds modules and nothing else: no files, no sampling."""
