"""Scoring: from a model and its batches to gradients, and to what is kept of it."""
