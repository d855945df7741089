"""What speaks with the Kubernetes API, against the embedded cluster's faults and against servers that are worse."""
