"""Several processes: deciding together, and the part of each of what is sharded."""
