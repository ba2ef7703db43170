"""The entries of the norms that treat each example by itself."""

import jaxnorm
from tests.contract.norm import NOT_CENTERED, Norm, first, in_groups, over
from tests.support import reference

FEATURE = [
    Norm(
        name="layer_norm",
        public="layer_norm",
        function=jaxnorm.layer_norm,
        pools=over(-1),
        feature_axes=(-1,),
        shapes={"plain": (8, 16), "five": (3, 5), "many": (2, 100_000), "large": (512, 512)},
    ),
    Norm(
        name="layer_norm_inner",
        public="layer_norm",
        function=first(jaxnorm.layer_norm, axis=(2, -3), feature_axes=(2, 1)),
        pools=over(1, 2),
        feature_axes=(1, 2),
        shapes={
            "plain": (8, 3, 4, 8),
            "five": (2, 5, 1, 3),
            "many": (2, 400, 250, 2),
            "large": (8, 24, 32, 64),
        },
    ),
    Norm(
        name="rms_norm",
        public="rms_norm",
        function=jaxnorm.rms_norm,
        pools=over(-1),
        feature_axes=(-1,),
        formula=reference.over_rms,
        vjp=reference.over_rms_vjp,
        shapes={"plain": (8, 16), "five": (3, 5), "many": (2, 100_000), "large": (512, 512)},
        exempt={"shift": NOT_CENTERED, "constant": NOT_CENTERED},
    ),
    Norm(
        name="rms_norm_offset",
        public="rms_norm",
        function=first(jaxnorm.rms_norm, axis=1, gamma_offset=1.0),
        pools=over(1),
        feature_axes=(1,),
        formula=reference.over_rms,
        vjp=reference.over_rms_vjp,
        gamma_offset=1.0,
        shapes={
            "plain": (8, 6, 8),
            "five": (2, 5, 3),
            "many": (1, 100_000, 2),
            "large": (16, 256, 128),
        },
        exempt={"shift": NOT_CENTERED, "constant": NOT_CENTERED},
    ),
    Norm(
        name="group_norm",
        public="group_norm",
        function=first(jaxnorm.group_norm, num_groups=2),
        pools=in_groups(2),
        feature_axes=(-1,),
        shapes={
            "plain": (8, 3, 16),
            "five": (4, 1, 10),
            "many": (1, 10_000, 20),
            "large": (8, 28, 28, 64),
        },
    ),
    Norm(
        name="group_norm_channels_first",
        public="group_norm",
        function=first(jaxnorm.group_norm, num_groups=4, channel_axis=1),
        pools=in_groups(4, 1),
        feature_axes=(1,),
        shapes={
            "plain": (8, 8, 3, 2),
            "five": (2, 4, 5, 1),
            "many": (1, 4, 250, 400),
            "large": (8, 64, 28, 28),
        },
    ),
    Norm(
        name="instance_norm",
        public="instance_norm",
        function=jaxnorm.instance_norm,
        pools=lambda shape: reference.pools_over(shape, range(1, len(shape) - 1)),
        feature_axes=(-1,),
        shapes={
            "plain": (8, 3, 4, 8),
            "five": (2, 5, 1, 3),
            "many": (1, 250, 400, 2),
            "large": (8, 28, 28, 64),
        },
    ),
]
