"""Tests of batch norm."""
