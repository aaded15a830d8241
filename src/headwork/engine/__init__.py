"""Executing a network: capture, edits, gradients, and resuming a forward pass from where an edit bites."""
