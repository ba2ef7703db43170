"""The images that `compare` trains on: scikit-learn's digits or the user's own."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxnorm.cli.errors import UserError

TEST_SHARE = 0.25
SMALLEST_SIDE = 5  # two convolutions with stride 2 leave 2 x 2 positions


class Dataset(NamedTuple):
    """Images (N, H, W, C) in float32 and their labels, numbered from 0."""

    name: str
    x: np.ndarray
    y: np.ndarray
    num_classes: int


class Split(NamedTuple):
    """Training and test examples, standardized by the training images' mean and deviation."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def load_digits() -> Dataset:
    """Returns the 1797 handwritten digits of 8 x 8 pixels that scikit-learn carries."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return Dataset("digits", x.reshape(-1, 8, 8, 1).astype(np.float32), y.astype(np.int32), 10)


def load_file(path: Path) -> Dataset:
    """Reads the arrays x (N, H, W, C) and y (N,) from an .npz file.

    Raises:
      UserError: the file cannot be read, an array is missing, or a shape or dtype is wrong.
    """
    x, y = _read_arrays(path)
    _check_images(path, x)
    if y.shape != (len(x),):
        raise UserError(f"{path}: y must have the shape (N,) = ({len(x)},) of x, got {y.shape}")
    if not np.issubdtype(y.dtype, np.integer):
        raise UserError(f"{path}: y must hold whole numbers, got dtype {y.dtype}")
    with np.errstate(over="ignore"):
        x = x.astype(np.float32)
    if not np.isfinite(x).all():
        raise UserError(f"{path}: x holds values that are not finite in float32")
    labels, y = np.unique(y, return_inverse=True)
    _check_classes(path, labels, np.bincount(y))
    return Dataset(path.stem, x, y.astype(np.int32), len(labels))


def _read_arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            for name in ("x", "y"):
                if name not in file.files:
                    found = ", ".join(sorted(file.files)) or "nothing"
                    raise UserError(f"{path} has no array {name}: expected x and y, found {found}")
            return file["x"], file["y"]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    # np.load raises ValueError for other formats and object arrays, TypeError for a single array
    # (.npy, no context manager), EOFError for an empty file.
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not an .npz file of plain arrays") from error


def _check_images(path: Path, x: np.ndarray) -> None:
    if x.ndim != 4:
        raise UserError(f"{path}: x must have the shape (N, H, W, C), got {x.shape}")
    if min(x.shape[1:3]) < SMALLEST_SIDE or x.shape[3] < 1:
        raise UserError(
            f"{path}: the images of x must be at least {SMALLEST_SIDE} x {SMALLEST_SIDE} pixels "
            f"with 1 channel, got the shape {x.shape}"
        )
    if not (np.issubdtype(x.dtype, np.floating) or np.issubdtype(x.dtype, np.integer)):
        raise UserError(f"{path}: x must hold real numbers, got dtype {x.dtype}")


def _check_classes(path: Path, labels: np.ndarray, counts: np.ndarray) -> None:
    if len(labels) < 2:
        raise UserError(f"{path}: y must hold at least 2 classes, got {len(labels)}")
    # A stratified split takes every fourth example of a class for the test.
    rare = np.argmin(counts)
    if counts[rare] < 4:
        raise UserError(
            f"{path}: too few examples: a class needs at least 4 to be split into training and "
            f"test, class {labels[rare]} has {counts[rare]}"
        )


def split_dataset(data: Dataset, seed: int) -> Split:
    """Splits off a quarter for the test, the same share of every class, drawn by `seed`."""
    from sklearn.model_selection import train_test_split

    rows = train_test_split(
        np.arange(len(data.y)), test_size=TEST_SHARE, stratify=data.y, random_state=seed
    )
    train, test = map(np.asarray, rows)
    mean = float(data.x[train].mean(dtype=np.float64))
    deviation = float(data.x[train].std(dtype=np.float64)) or 1.0
    x = (data.x - mean) / deviation
    return Split(x[train], data.y[train], x[test], data.y[test])
