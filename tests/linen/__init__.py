"""Tests of `jaxnorm.linen`."""
