"""Breaks the heart of the daemon in small ways, one at a time, and says which of them no test notices.

    python -m benchmarks.mutate --mutants 60 --seed 1

Each mutant is one change in one place, in a copy of the tree: a comparison turned round or moved by one, a condition
negated, `and` made `or`, a number or a truth value changed, a time made none, a statement left out. Lines of the log
are left alone, and so are assertions. A mutant that lives is either as good as the original, which is for
people to judge, or shows that a test is missing.
"""

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
DAEMON = Path("daemon/k8s_builderd")
RUNS = tuple(
    DAEMON / "runs" / f"{name}.py"
    for name in ("record", "decide", "observed", "store", "stop", "attend", "predecessors", "launch")
)
KUBE = tuple(DAEMON / "kube" / f"{name}.py" for name in ("watch", "logs", "loglines"))


def _scenes(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/daemon/test_{name}.py" for name in names)


TESTS: dict[Path, tuple[tuple[str, ...], ...]] = {
    **dict.fromkeys(
        RUNS,
        (
            ("tests/runs",),
            ("tests/simulation",),
            _scenes("stop", "knocking", "replace", "restarts", "reuse", "metrics"),
        ),
    ),
    **dict.fromkeys(KUBE, (("tests/kube",), ("tests/simulation",), _scenes("run_ends", "outage"))),
}
"""What is run for a mutant of a file, one group after another until one of them fails: the quick ones first."""

OPPOSITE: dict[type[ast.cmpop], str] = {
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Lt: ">=",
    ast.GtE: "<",
    ast.Gt: "<=",
    ast.LtE: ">",
    ast.Is: "is not",
    ast.IsNot: "is",
    ast.In: "not in",
    ast.NotIn: "in",
}
BOUNDARY: dict[type[ast.cmpop], str] = {ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">"}


class Mutant(NamedTuple):
    """One change: the bytes from `start` to `end` of a file are replaced."""

    path: Path
    line: int
    start: int
    end: int
    old: str
    new: str

    def __str__(self) -> str:
        """Return one line: where it is, and what was changed."""
        old, new = (" ".join(text.split()) for text in (self.old, self.new))
        return f"{self.path}:{self.line}: {old} -> {new}"

    def applied(self, source: bytes) -> bytes:
        """Return the file with this change."""
        return source[: self.start] + self.new.encode() + source[self.end :]


def mutants(path: Path, source: bytes) -> Iterator[Mutant]:
    """Yield every change that can be made in a file."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def change(node: ast.expr | ast.stmt, new: str) -> Mutant:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start, end = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
        return Mutant(path, node.lineno, start, end, source[start:end].decode(), new)

    for node in _judged(ast.parse(source)):
        match node:
            case ast.Compare(left, [operator], [right]):
                for table in (OPPOSITE, BOUNDARY):
                    if type(operator) in table:
                        new = f"({ast.unparse(left)}) {table[type(operator)]} ({ast.unparse(right)})"
                        yield change(node, new)
            case ast.BoolOp(operator, values):
                word = "or" if isinstance(operator, ast.And) else "and"
                yield change(node, "(" + f" {word} ".join(f"({ast.unparse(value)})" for value in values) + ")")
            case ast.UnaryOp(ast.Not(), operand):
                yield change(node, f"bool({ast.unparse(operand)})")
            case ast.If(test) | ast.While(test) | ast.IfExp(test) if not isinstance(
                test, ast.Compare | ast.UnaryOp | ast.Constant
            ):
                yield change(test, f"(not ({ast.unparse(test)}))")
            case ast.Constant(bool() as value):
                yield change(node, str(not value))
            case ast.Constant(int() as value):
                yield change(node, repr(value + 1))
            case ast.Constant(float() as value):
                yield change(node, "1.0" if value == 0 else "0.0")
            case ast.Expr(ast.Call()) | ast.Assign([ast.Attribute()]) | ast.AugAssign() | ast.Delete():
                yield change(node, "pass")
            case ast.Continue() | ast.Break() | ast.Raise():
                yield change(node, "pass")
            case ast.Return(ast.expr() as value) if not isinstance(value, ast.Constant):
                yield change(node, "return None")


def _judged(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of what decides: no annotation, no default of an overload, no word for people, no assertion."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Assert | ast.Import | ast.ImportFrom) or _tells(node):
            continue
        yield node
        if isinstance(node, ast.AnnAssign):
            if node.value is not None:
                yield from _judged(ast.Expression(node.value))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for default in (*node.args.defaults, *(one for one in node.args.kw_defaults if one is not None)):
                yield from _judged(ast.Expression(default))
            yield from _judged(ast.Module(node.body, []))
        elif isinstance(node, ast.ClassDef):
            yield from _judged(ast.Module(node.body, []))
        else:
            yield from _judged(node)


def _tells(node: ast.AST) -> bool:
    """Say whether a statement is a line of the daemon's log."""
    match node:
        case ast.Expr(ast.Call(ast.Attribute(value, "debug" | "info" | "warning" | "error" | "exception"))):
            return "log" in ast.unparse(value)
    return False


class Copy:
    """A copy of the tree, and a Python that has it instead of the original, in the processes of the tests as well."""

    def __init__(self, directory: Path) -> None:
        self.tree = directory / "tree"
        ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info")
        shutil.copytree(ROOT, self.tree, ignore=ignored)
        environment = directory / "venv"
        venv.create(environment, symlinks=True)
        self.python = environment / "bin" / "python"
        variables = {"base": str(environment), "platbase": str(environment)}
        places = [self.tree / "daemon", self.tree / "client", *map(sysconfig.get_path, ("purelib", "platlib"))]
        site = Path(sysconfig.get_path("purelib", vars=variables)) / "copy.pth"
        site.write_text("".join(f"{place}\n" for place in dict.fromkeys(map(str, places))))

    def passes(self, tests: Sequence[str], *, within: float) -> tuple[bool, str]:
        """Run tests until the first fails; return whether none did, and what did. Too slow counts as failed."""
        command = [
            str(self.python),
            "-m",
            "pytest",
            "-x",
            "-q",
            "-p",
            "no:cacheprovider",
            "--no-header",
            "--tb=no",
            *tests,
        ]
        environment = {**os.environ, "TEST_PATIENCE": "15"}  # noqa: TID251 - a tool by hand
        with subprocess.Popen(
            command,
            cwd=self.tree,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                output, _ = process.communicate(timeout=within)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                return False, f"{' '.join(tests)} took more than {within:.0f} s"
        failed = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
        return process.returncode == 0, (failed or output.splitlines() or [""])[-1 if not failed else 0]


def main() -> int:
    """Make the mutants, judge each, and print those that live. Returns 1 where the tests fail without any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=60, help="how many (60)")
    parser.add_argument("--seed", type=int, default=1, help="which of them (1)")
    parser.add_argument("--only", action="append", help="those of files whose path holds this; may be given repeatedly")
    parser.add_argument("--list", action="store_true", help="print them and run nothing")
    arguments = parser.parse_args()
    chosen = [path for path in TESTS if any(part in str(path) for part in arguments.only or [""])]
    all_of_them = [mutant for path in chosen for mutant in mutants(path, (ROOT / path).read_bytes())]
    drawn = random.Random(arguments.seed).sample(all_of_them, min(arguments.mutants, len(all_of_them)))  # noqa: S311
    _say(f"{len(drawn)} of {len(all_of_them)} mutants, seed {arguments.seed}")
    if arguments.list:
        for mutant in drawn:
            _say(str(mutant))
        return 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as directory:
        copy = Copy(Path(directory))
        took: dict[tuple[str, ...], float] = {}
        for group in dict.fromkeys(group for mutant in drawn for group in TESTS[mutant.path]):
            start = time.monotonic()
            passed, why = copy.passes(group, within=3600)
            took[group] = time.monotonic() - start
            if not passed:
                _say(f"the tests fail without any change: {why}")
                return 1
        living = [mutant for mutant in drawn if _lives(mutant, copy, took)]
    _say(f"{len(living)} of {len(drawn)} live:")
    for mutant in living:
        _say(f"  {mutant}")
    return 0


def _lives(mutant: Mutant, copy: Copy, took: dict[tuple[str, ...], float]) -> bool:
    file = copy.tree / mutant.path
    original = file.read_bytes()
    changed = mutant.applied(original)
    compile(changed, str(file), "exec")
    file.write_bytes(changed)
    try:
        for group in TESTS[mutant.path]:
            passed, why = copy.passes(group, within=60 + 4 * took[group])
            if not passed:
                _say(f"killed  {mutant}  by {why}")
                return False
    finally:
        file.write_bytes(original)
    _say(f"LIVES   {mutant}")
    return True


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
