"""The one exception that a user, not a programmer, is meant to read."""

import importlib.util

BAD_INPUT = 2


class UserError(Exception):
    """Bad input, stated in one line that names the file and the remedy.

    Command lines print it as `error: ...` and exit with status 2.
    """


def require_extra(extra: str, *modules: str, wanted_by: str = "") -> None:
    """Check that an extra's modules are installed, before the work that needs them starts.

    `wanted_by` is what the user asked for, where the modules alone would not tell why.

    Raises:
      UserError: the first one that is not, and the command that installs it.
    """
    for module in modules:
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError:  # not even the package that the module is in
            found = None
        if found is None:
            prefix = f"{wanted_by}: " if wanted_by else ""
            raise UserError(f"{prefix}{module} is not installed; pip install 'dossr-jax[{extra}]'")
