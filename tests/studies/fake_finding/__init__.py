"""A finding for tests: its numbers come from one weight of the network, in milliseconds."""
