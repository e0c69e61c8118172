"""The method itself: schedule (NumPy), solver tables and their loop, forward process and loss.

Nothing here knows a network: denoisers and noise arrive as callables.
"""
