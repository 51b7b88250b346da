"""Topologies: the index lists that sparse kernels walk, built once from a mask."""

from snipkern.topology.block import BlockTopology
from snipkern.topology.cover import CoverTopology
from snipkern.topology.csr import BaseTopology, Topology
from snipkern.topology.mixed import MixedTopology, build

__all__ = ["BaseTopology", "BlockTopology", "CoverTopology", "MixedTopology", "Topology", "build"]
