"""What `k8s-builder doctor` looks at: socket and daemon, cluster, client programs, core.yaml. Changes nothing."""
