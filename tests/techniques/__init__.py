"""Techniques whose form the contract's registry does not fit, and tests of single techniques."""
