"""What the daemon does for each of the four programs: one module for each, a request in and an exit code out."""
