"""`python -m k8s_builderd.cli`: the same as `k8s-builder`."""

from k8s_builderd.cli import main

if __name__ == "__main__":
    main(prog_name="k8s-builder")
