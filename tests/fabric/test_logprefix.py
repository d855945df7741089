"""What stands in front of each line of a chaincode's log."""

from hypothesis import given
from hypothesis import strategies as st

from k8s_builderd.fabric.logprefix import MAX_PREFIX, MAX_TEMPLATE, fault, render
from k8s_builderd.fabric.names import PackageId
from k8s_builderd.kube.loglines import PIECE

BASIC = PackageId("basic_1.0", "6f98c4bb" * 8)


def test_a_template_names_what_the_chaincode_is() -> None:
    assert render("{label} {hash:.8} {pod} | ", BASIC, "hlfcc-x") == b"basic_1.0 6f98c4bb hlfcc-x | "
    assert render("{{{label}}} ", BASIC, "p") == b"{basic_1.0} "
    assert render("chaincode: ", BASIC, "p") == b"chaincode: "
    assert render("", BASIC, "p") == b""


def test_a_label_with_a_line_feed_makes_no_second_line() -> None:
    assert render("{label}: ", PackageId("a\nrun [1]: b\x1b[0m", ""), "p") == b"a?run [1]: b?[0m: "


def test_a_long_prefix_is_cut_between_two_characters() -> None:
    assert render("x{label}", PackageId("é" * 1000, ""), "p") == b"x" + "é".encode() * ((MAX_PREFIX - 1) // 2)


@given(st.text(max_size=MAX_TEMPLATE), st.text(), st.text())
def test_what_is_taken_can_be_used(template: str, label: str, pod: str) -> None:
    if fault(template) is None:
        made = render(template, PackageId(label, "00"), pod)
        assert made.decode().isprintable()
        assert len(made) <= MAX_PREFIX


def test_a_piece_with_the_longest_prefix_stays_below_what_a_peer_reads() -> None:
    marks = b"| " + b" [piece %d, the last of this line]\n" % (1 << 62)
    assert PIECE + MAX_PREFIX + len(marks) < 64 * 1024
