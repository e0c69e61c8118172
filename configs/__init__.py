"""Experiments by name: each file holds one typed CONFIG; its docstring says what to expect."""
