"""What a network is: configuration, forward pass, sites, checkpoints, and where models come from."""
