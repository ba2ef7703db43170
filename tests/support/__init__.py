"""Helpers of the tests: references, readers of programs, and workers."""
