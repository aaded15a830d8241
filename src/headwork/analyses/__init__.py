"""Analyses: one method on one network and one task, published as pictures, a dataset and a summary."""
