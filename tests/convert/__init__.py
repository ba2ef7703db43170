"""Tests of the conversions of layers of other libraries."""
