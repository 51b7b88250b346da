"""The choice of how each layer computes: what it is asked to do, what that costs, and what a clock says."""
