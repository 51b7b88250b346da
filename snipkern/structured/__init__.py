"""Structured pruning: whole channels, found by gates on untrained weights, and layers that get smaller for good."""

from snipkern.structured.scratch import ChannelPlan, channel_masks, from_scratch
from snipkern.structured.shrink import Shrunk, shrink_

__all__ = ["ChannelPlan", "Shrunk", "channel_masks", "from_scratch", "shrink_"]
