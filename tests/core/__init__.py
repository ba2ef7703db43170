"""Tests of `jaxnorm._core`."""
