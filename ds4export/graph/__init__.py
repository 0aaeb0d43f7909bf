"""From the PyTorch definition to an ONNX graph of `ds4` nodes.

Owns tracing (one function per kind of half layer), assembly of the main and the MTP graph, and the attachment of op
bodies. Refuses any node that is not a `ds4` op: arithmetic has no other place (design 5).
"""

from ds4export.graph.assemble import GraphPlan, Graphs, build_graphs

__all__ = ["GraphPlan", "Graphs", "build_graphs"]
