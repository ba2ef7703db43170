"""The contract: a registry of every public normalization, and the tests that run over it."""
