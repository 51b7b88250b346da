"""Selection: the exact global top of the scores, from tensors, files, streams or shards."""
