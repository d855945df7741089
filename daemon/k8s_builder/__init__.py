"""`k8s-builder`, the command for people: chaincode packages, and a cluster to try them on. Never the daemon."""
