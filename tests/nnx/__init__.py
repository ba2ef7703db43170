"""Tests of `jaxnorm.nnx`."""
