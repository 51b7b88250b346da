"""Allocation: how the kept weights are shared out over layers, and over rows, columns and blocks within one."""

from snipkern.allocation.allocate import Allocated, allocate
from snipkern.allocation.flow import Flow, seen_flows
from snipkern.allocation.graph import Graph
from snipkern.allocation.options import SCOPES, Allocation, allocation
from snipkern.allocation.watch import watching

__all__ = ["SCOPES", "Allocated", "Allocation", "Flow", "Graph", "allocate", "allocation", "seen_flows", "watching"]
