"""Tests of `jaxnorm.drop_in`."""
