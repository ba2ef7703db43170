"""The tests; a package, so that they share what stands in `support` and `contract`."""
