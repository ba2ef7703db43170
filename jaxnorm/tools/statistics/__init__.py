"""Running statistics over whole data sets and over microbatches."""
