#!/usr/bin/env bash
# jax 0.10.2, CPU: in a jitted program a sum of relu(x) is an ordinary number although x holds a NaN.
#
# Guess before trying: `jax.nn.relu` is `maximum(x, 0)`, XLA's maximum returns NaN where an operand is
# NaN, so the sum of a row with a NaN is NaN, eagerly and under jit, as with every release before.
#
# Seen: from jaxlib 0.10.2 on (0.12.0 too; not with 0.10.0) XLA on CPU hands sums, and what is computed
# on the way to them, to a library of vectorized reductions whose maximum and minimum return the other
# operand. So under jit, of arrays that are large enough, the NaN is gone: a diverged loss looks
# healthy, and jax_debug_nans stays silent. The same function of the same array is NaN eagerly, and
# under jit of fewer rows. A row less its mean keeps the NaN in one element instead of in all, if a
# maximum guards the mean.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "jax==0.10.2" "jaxlib==0.10.2" "numpy==2.4.6"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PY' | tee "$folder/seen"
import jax, jax.numpy as jnp, numpy as np

x = np.random.default_rng(0).standard_normal((8192, 96)).astype(np.float32)
x[3, 5] = np.nan


def guarded(x):
    mean = jnp.maximum(jnp.sum(x, -1, keepdims=True) / 96, -1e30)
    return x - mean


print("jax", jax.__version__)
for name, function in (
    ("sum of relu", lambda x: jnp.sum(jax.nn.relu(x), -1)),
    ("x less a guarded mean", guarded),
):
    for rows in (8, 8192):
        eager = int(np.isnan(function(jnp.asarray(x[:rows]))).sum())
        jitted = int(np.isnan(jax.jit(function)(x[:rows])).sum())
        print(f"{name}, {rows} rows: {eager} NaN eagerly, {jitted} under jit")
PY
diff "$folder/seen" - <<'SEEN'
jax 0.10.2
sum of relu, 8 rows: 1 NaN eagerly, 1 under jit
sum of relu, 8192 rows: 1 NaN eagerly, 0 under jit
x less a guarded mean, 8 rows: 96 NaN eagerly, 96 under jit
x less a guarded mean, 8192 rows: 96 NaN eagerly, 1 under jit
SEEN
echo "as described"
