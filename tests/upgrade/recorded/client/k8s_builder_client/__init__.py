"""The four programs that a Fabric peer calls: `detect`, `build`, `release` and `run`."""
