"""Tests of `jaxnorm.functional`."""
