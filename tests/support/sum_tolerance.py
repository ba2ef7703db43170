"""Sums of many terms, which two programs add up in different orders."""

import numpy as np


def assert_sums_close(actual, expected, terms):
    """Compares float32 sums, given the sum of their terms' magnitudes.

    Each program rounds a term, and what it adds it to, by up to 6e-8 of its size, a few times. So
    how far two results may lie apart follows from the terms; where they cancel, what is left of
    them is far smaller than that, and says nothing about it.
    """
    actual, expected = (np.asarray(value, np.float64) for value in (actual, expected))
    np.testing.assert_array_less(
        np.abs(actual - expected), 2 * np.finfo(np.float32).eps * terms + 1e-30
    )


def assert_parameter_gradients_close(actual, expected, dy, hat):
    """Compares gradients of gamma and beta: sums of dy * hat and dy over all axes but the last.

    Where a mask leaves out, `dy` is 0.
    """
    dy, hat = (np.asarray(value, np.float64).reshape(-1, value.shape[-1]) for value in (dy, hat))
    for one, other, terms in zip(actual, expected, (dy * hat, dy), strict=True):
        assert_sums_close(one, other, np.abs(terms).sum(0))
