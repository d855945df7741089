"""`python -m k8s_builderd.embedded`: the same as `k8s-builder embedded-cluster`."""

from k8s_builderd.embedded.command import embedded_cluster

if __name__ == "__main__":
    embedded_cluster(prog_name="k8s-builder embedded-cluster")
