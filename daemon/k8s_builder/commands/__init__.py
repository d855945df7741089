"""The subcommands of `k8s-builder`: a module for each group, imported when it is called."""
