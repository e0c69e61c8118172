"""ResShift: x4 by a short Markov chain that starts at the encoded low-resolution image."""
