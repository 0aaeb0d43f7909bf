"""What `make gpu-check` runs, and its tests on a machine without a GPU."""
