"""Tests of the tools for whole models."""
