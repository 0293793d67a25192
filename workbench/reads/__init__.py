"""What to observe in a forward pass, as data. Each read defines itself on the attention pattern, and says how it is computed without one.

A read is a frozen dataclass: it can be hashed, written down and compared. `reference(view)` defines it, from the probabilities of some heads of one
layer. `wanted(rows)` names the statistics that it needs, `streamed(seen)` computes it from them for all heads of a layer; tests hold the two
together. `captures` joins the layers, which puts L behind B in the shapes given. `rows` names the query rows to look at (see `Prompts.rows`); None
means all. Prompts may go through the model in chunks: rows are then put side by side, unless the read says otherwise (`joined`, `finished`).
"""

from workbench.reads.keys import BlockMap, KeyNorm, Received, ValueNorm
from workbench.reads.masses import Distances, Mass, TopMass
from workbench.reads.predictions import NextToken, NextTokenValue
from workbench.reads.raw import HeadOutput, Pattern, QueryKey, QueryKeyValue
from workbench.reads.rows import Entropy, FirstKeyCosine, LogSumExp, Peak, PeakValue
from workbench.reads.stream import Activations, ActivationsValue, BlockOutput, Written, WrittenValue

LayerRead = (
    Mass
    | Distances
    | TopMass
    | Entropy
    | Peak
    | LogSumExp
    | FirstKeyCosine
    | Received
    | BlockMap
    | Pattern
    | HeadOutput
    | QueryKey
    | ValueNorm
    | KeyNorm
    | Written
)
BlockRead = Activations | BlockOutput
Read = LayerRead | BlockRead | NextToken
BLOCK_READS: tuple[type, ...] = BlockRead.__args__
READS: tuple[type, ...] = (*LayerRead.__args__, NextToken)

__all__ = [
    "BLOCK_READS",
    "READS",
    "Activations",
    "ActivationsValue",
    "BlockMap",
    "BlockOutput",
    "BlockRead",
    "Distances",
    "Entropy",
    "FirstKeyCosine",
    "HeadOutput",
    "KeyNorm",
    "LayerRead",
    "LogSumExp",
    "Mass",
    "NextToken",
    "NextTokenValue",
    "Pattern",
    "Peak",
    "PeakValue",
    "QueryKey",
    "QueryKeyValue",
    "Read",
    "Received",
    "TopMass",
    "ValueNorm",
    "Written",
    "WrittenValue",
]
