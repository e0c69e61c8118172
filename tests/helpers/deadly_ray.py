"""`python -m dossr_jax.ray` whose workers die while they read certain photos.

python deadly_ray.py FOLDER RETRIES ARGUMENTS...: of `once_*` the first time, which a file in FOLDER
marks, and of `always_*` each time; RETRIES in each of the two passes.
"""

import os
import signal
import sys
from pathlib import Path

from dossr_jax import files
from dossr_jax.ray import engine
from dossr_jax.ray.__main__ import main

_MARKS = Path(sys.argv[1])


class Deadly(engine._Restorer):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        read = files.read_photo

        def read_or_die(path):
            first = not (_MARKS / path.name).exists()
            if path.name.startswith("always_") or (path.name.startswith("once_") and first):
                (_MARKS / path.name).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return read(path)

        files.read_photo = read_or_die


if __name__ == "__main__":
    engine._Restorer = Deadly
    engine._RETRIES = int(sys.argv[2])
    raise SystemExit(main(sys.argv[3:]))
