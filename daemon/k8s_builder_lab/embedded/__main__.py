"""`python -m k8s_builder_lab.embedded`: the same as `k8s-builder embedded-cluster`."""

from k8s_builder_lab.embedded.command import embedded_cluster

if __name__ == "__main__":
    embedded_cluster(prog_name="k8s-builder embedded-cluster")
