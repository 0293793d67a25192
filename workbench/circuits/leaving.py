"""How does a circuit leave the workbench? As JSON, as a graph, as head labels, and as a table of its heads."""

import io
import json
from collections.abc import Callable, Mapping
from typing import NamedTuple

import networkx as nx

from workbench.circuits.circuit import Circuit
from workbench.formats import as_bytes
from workbench.labels import HeadLabels


class Leaving(NamedTuple):
    """One kind of file: what it is for, and how its bytes are made from a circuit and the labels of its model that are to be kept, if any."""

    about: str
    made: Callable[[Circuit, HeadLabels | None], bytes]


def _json(circuit: Circuit) -> bytes:
    return (json.dumps(circuit.to_json(), indent=1, ensure_ascii=False) + "\n").encode()


def _graphml(circuit: Circuit) -> bytes:
    written = io.BytesIO()
    nx.write_graphml(circuit.graph(), written)
    return written.getvalue()


KINDS: Mapping[str, Leaving] = {
    ".json": Leaving("the circuit with its tables and provenance, for `workbench circuit` and this page", lambda circuit, _: _json(circuit)),
    ".graphml": Leaving("its heads and measured edges as a graph, for Gephi, Cytoscape and yEd", lambda circuit, _: _graphml(circuit)),
    ".labels.json": Leaving(
        "its heads as labels of the workbench, beside those of the same model", lambda circuit, given: as_bytes(circuit.labels(given), "workbench")[1]
    ),
    ".csv": Leaving("its heads with effects and minimality", lambda circuit, _: circuit.table.to_csv(index=False).encode()),
}
"""Every kind of file that a circuit can leave as, by its ending."""
