"""Pure functions, one file per family; all are exported by `jaxnorm` itself."""
