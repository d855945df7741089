"""Everything that speaks with the Kubernetes API: transport, objects, watches and logs. No status code leaves it."""
