"""`python -m k8s_builder`: the same as `k8s-builder`."""

from k8s_builder.main import main

if __name__ == "__main__":
    main(prog_name="k8s-builder")
