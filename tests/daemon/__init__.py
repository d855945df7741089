"""The daemon and the four programs as processes, against an embedded cluster over HTTP."""
