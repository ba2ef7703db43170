"""Normalizations that learn and keep running statistics, in float64 NumPy."""

import numpy as np

RATE = 0.1  # of gradient descent on gamma and beta
STEPS = 10


def data(shape, seed=0):
    """Returns a batch and a cotangent for each step; the channels' scales differ."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(STEPS, *shape)) * rng.uniform(0.5, 2, shape) + rng.normal(size=shape)
    return x.astype(np.float32), rng.normal(size=x.shape).astype(np.float32)


class Reference:
    """A normalization, its parameters and its running statistics.

    Args:
      gamma: in the sizes of the input along `features`, or None.
      beta: like `gamma`.
      pooled: the axes pooled.
      features: the axes of gamma and beta, ascending.
      epsilon: added to the variance.
      groups: of axis 1, each pooled.
      center: whether the mean is subtracted.
    """

    dx = None  # the cotangent of the last batch, where it is known

    def __init__(self, gamma, beta, *, pooled, features, epsilon, groups=None, center=True):
        self.gamma, self.beta = (None if p is None else np.float64(p) for p in (gamma, beta))
        self.pooled, self.features = pooled, features
        self.epsilon, self.groups, self.center = epsilon, groups, center

    def statistics(self, x):
        """Returns mean and variance, broadcastable against x."""
        y = x
        if self.groups:
            y = x.reshape(len(x), self.groups, x.shape[1] // self.groups, -1)
        axes = (2, 3) if self.groups else self.pooled
        mean = y.mean(axes, keepdims=True) * self.center
        var = ((y - mean) ** 2).mean(axes, keepdims=True)
        if not self.groups:
            return mean, var
        size = x.shape[1] // self.groups
        shape = (len(x), x.shape[1]) + (1,) * (x.ndim - 2)
        return tuple(np.repeat(s[:, :, 0, 0], size, 1).reshape(shape) for s in (mean, var))

    def normalize(self, x, mean, var):
        """Returns y, and x_hat."""
        x_hat = (x - mean) / np.sqrt(var + self.epsilon)
        shape = [s if a in self.features else 1 for a, s in enumerate(x.shape)]
        gamma = 1 if self.gamma is None else self.gamma.reshape(shape)
        beta = 0 if self.beta is None else self.beta.reshape(shape)
        return x_hat * gamma + beta, x_hat

    def normalizing(self, mean, var):
        """Returns the statistics that normalize in training."""
        return mean, var

    def update(self, mean, var, count):
        """Moves the running statistics; nothing if there are none."""

    def running(self):
        """Returns the running mean and variance, one value per feature; None: there are none."""
        return None

    def train(self, x, dy):
        """Returns the last y, after all the steps."""
        for batch, cotangent in zip(np.float64(x), np.float64(dy), strict=True):
            mean, var = self.statistics(batch)
            y, x_hat = self.normalize(batch, *self.normalizing(mean, var))
            self.update(mean, var, batch.size // mean.size)
            others = tuple(a for a in range(batch.ndim) if a not in self.features)
            if self.gamma is not None:
                self.gamma = self.gamma - RATE * (cotangent * x_hat).sum(others)
            if self.beta is not None:
                self.beta = self.beta - RATE * cotangent.sum(others)
        return y

    def evaluate(self, x):
        """Returns y, by the running statistics if there are some."""
        x = np.float64(x)
        running = self.running()
        if running is None:
            return self.normalize(x, *self.statistics(x))[0]
        shape = [s if a in self.features else 1 for a, s in enumerate(x.shape)]
        return self.normalize(x, *(np.reshape(s, shape) for s in running))[0]
