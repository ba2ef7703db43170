"""The folder that a command writes its files to, and its CSV file."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxnorm.cli.errors import UserError


def prepare_folder(folder: Path, *names: str) -> None:
    """Makes `folder` and checks that files of these names can be written there.

    A command calls it before it computes, so that no work is lost to a mistyped folder.

    Raises:
      UserError: the folder cannot be made or written to, or one of the files cannot.
    """
    path = folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Permission bits do not tell everything (root, read-only and special file systems).
        with tempfile.TemporaryFile(dir=folder):
            pass
        for path in (folder / name for name in names):
            if path.exists():
                path.open("ab").close()
    except OSError as error:
        raise UserError(f"cannot write to {path}: {error.strerror}") from error


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes rows of the same keys, under a header of these."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
