"""Purposes of random draws, folded into keys: one enumeration, so that no two share a number."""

import enum


class Draw(enum.IntEnum):
    """Restoration folds its purposes into an image's key, training into a sample's."""

    POSTERIOR = 0
    START = 1
    FIRST_STEP = 2  # those of the solver's later steps follow
    # Training.
    DEGRADE = 1000
    TIME = 1001
    NOISE = 1002
    PROMPT = 1003
    SAMPLING = 1004
    SHOW = 1005
