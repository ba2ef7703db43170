"""Flax's own norms, computed by jaxnorm: a model stays as it is, and becomes exact and lean.

`BatchNorm`, `LayerNorm`, `RMSNorm`, `GroupNorm` and `InstanceNorm` of `jaxnorm.drop_in.linen` and
`jaxnorm.drop_in.nnx` are subclasses of flax's, with the same fields, variables and dtypes of
results, so that checkpoints, partitioning rules, optimizers and `isinstance` go on working. There
are three ways, each of one line:

- change the import: `from jaxnorm.drop_in.linen import BatchNorm`, or `jaxnorm.drop_in.nnx`;
- call a model of `flax.linen` inside `with jaxnorm.drop_in.linen.everywhere():`;
- pass a built model of `flax.nnx` through `jaxnorm.drop_in.nnx.replace(model)`.

Results are the same but for rounding, and these differences:

- They are exact whatever the mean, where flax's are off by some 5e-3 at 100 standard deviations
  and by some 1e+3 at 10000. `use_fast_variance` is accepted and changes nothing.
- Elements where a mask is False give 0, which flax normalizes like the others. Where all are
  masked the result is 0 and running statistics stay, where flax's become NaN.
- Statistics over named axes (`axis_name`) weigh each device by how many elements it holds, where
  flax averages the devices' means.
- `force_float32_reductions=False` decides what dtype the running statistics have, and no longer
  what is computed in: that is float32 or wider.
- Running statistics keep their dtype; with float64 inputs flax makes float64 of them. (A mean
  becomes complex with complex inputs, as it has to.)
- With a `dtype` of half precision NNX rounds the input, the parameters, their gradients and the
  running statistics to it beforehand; here the result alone is rounded. A `promote_dtype` of your
  own is called as flax calls it.
- `GroupNorm` of NNX with `reduction_axes` that keep more than the first axis mixes up the groups
  of flax's result; here it does not. Without the last axis they are an error, as in linen.
- With `epsilon=0` and a variance of 0 the result is the bias and gradients are 0, not NaN.
- Errors: an `epsilon` that is negative or traced, a `momentum` outside [0, 1], a complex input with
  a real `dtype`, a string as `use_running_average`. Warnings: running statistics of half precision
  that would stop moving; group norm with one value in each group and instance norm of one position,
  whose result is the bias whatever the input.

This module imports no flax; its two parts do.
"""
