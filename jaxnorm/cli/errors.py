"""Mistakes of the user, which every command reports in one line."""

from __future__ import annotations

import importlib.util


class UserError(Exception):
    """A mistake that the user can mend; its text is all that is printed."""


def require(*packages: str, extra: str = "demo") -> None:
    """Checks that optional packages are installed, before any work is done.

    Args:
      *packages: names as they are imported.
      extra: the optional dependencies of jaxnorm that bring them.

    Raises:
      UserError: one of them is missing.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"this command needs {' and '.join(missing)}, not installed here: "
            f'pip install "jaxnorm[{extra}]"'
        )
