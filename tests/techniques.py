"""The techniques that have tests of their own, by family; one line each says where they stand."""

from tests.techniques_activation import ACTIVATION
from tests.techniques_adaptive import ADAPTIVE
from tests.techniques_graph import GRAPH
from tests.techniques_response import RESPONSE

TECHNIQUES = [*RESPONSE, *ACTIVATION, *ADAPTIVE, *GRAPH]

PUBLIC = {technique.public for technique in TECHNIQUES}
