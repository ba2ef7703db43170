"""Batches as the tools take them, and batches taken apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx


class Rebuild:
    """Puts arrays back into the tree that they were taken from, beside its other leaves.

    Those that come from trees alike but for arrays and texts, such as names of files, are equal.
    """

    def __init__(self, structure: Any, rest: dict[int, Any]):
        self._structure, self._rest = structure, rest
        texts = (str, bytes, np.ndarray)
        self._key = tuple(
            (i, type(leaf), None if isinstance(leaf, texts) else leaf) for i, leaf in rest.items()
        )

    def __call__(self, arrays: Mapping[int, Any]) -> Any:
        leaves = {**self._rest, **arrays}
        return self._structure.unflatten([leaves[i] for i in range(len(leaves))])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Rebuild):
            return False
        return (self._structure, self._key) == (other._structure, other._key)

    def __hash__(self) -> int:
        return hash((self._structure, self._key))


def split_arrays(tree: Any, *, numbers: bool = False) -> tuple[dict[int, Any], Rebuild]:
    """Returns the arrays of a tree, and what puts others in their place.

    Flags and texts stay as they are, arrays of texts, too; and numbers, if they are not wanted.
    """
    leaves, structure = jax.tree.flatten(tree)

    def is_array(leaf: Any) -> bool:
        if isinstance(leaf, int | float | complex):
            return numbers and not isinstance(leaf, bool)
        return hasattr(leaf, "dtype") and getattr(leaf.dtype, "kind", "") not in "OSUM"

    arrays = {i: leaf for i, leaf in enumerate(leaves) if is_array(leaf)}
    rest = {i: leaf for i, leaf in enumerate(leaves) if i not in arrays}
    return arrays, Rebuild(structure, rest)


def check_batches(tool: str, batches: Any) -> Any:
    """Checks that these are an iterable of batches, and returns them."""
    if not isinstance(batches, Iterable):
        raise TypeError(
            f"{tool}: batches must be an iterable of batches, such as a list of arrays, got "
            f"{type(batches).__name__}."
        )
    return batches


def one_iterable(tool: str, model: Any, rest: tuple) -> Any:
    """Returns the iterable of batches, of the arguments behind a model and its variables."""
    if len(rest) != 1:
        variables = "" if isinstance(model, nnx.Module) else " and its variables"
        raise TypeError(
            f"{tool} takes one iterable of batches after the model{variables}, got {len(rest)} "
            "more arguments."
        )
    return check_batches(tool, rest[0])
