"""Test equipment and a laptop's cluster: the embedded cluster and the stand-in peer. Never in the image."""
