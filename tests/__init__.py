"""The tests; a package, so that they share `reference` and `registry`."""
