"""Fabric's documents, names and rules, and the Kubernetes objects made of them. Pure."""
