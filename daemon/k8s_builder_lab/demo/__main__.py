"""`python -m k8s_builder_lab.demo`: the same as `k8s-builder demo`."""

from k8s_builder_lab.demo.command import demo

if __name__ == "__main__":
    demo(prog_name="k8s-builder demo")
