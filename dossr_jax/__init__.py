"""DoSSR in JAX: diffusion super-resolution with domain-shift SDEs."""

__version__ = "0.1.0"
