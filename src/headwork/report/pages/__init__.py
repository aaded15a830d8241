"""The seven pages, one file each, in the order of the plan."""
