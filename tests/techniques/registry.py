"""The techniques that have tests of their own, by family; one line each says where they stand."""

from tests.techniques.activation import ACTIVATION
from tests.techniques.adaptive import ADAPTIVE
from tests.techniques.graph import GRAPH
from tests.techniques.response import RESPONSE

TECHNIQUES = [*RESPONSE, *ACTIVATION, *ADAPTIVE, *GRAPH]

PUBLIC = {technique.public for technique in TECHNIQUES}
