"""The inside of a container: mounts as Kubernetes makes them, then a stand-in for the peer as process 1.

Runs as `python -c THIS CONFIG` in new namespaces (tests/deploy/container.py), CONFIG being JSON. Standard output is
the container's; what the peer sees goes to standard error, one JSON object a line; standard input says what it does.
"""

import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

SERVICE_ACCOUNT = Path("/run/secrets/kubernetes.io/serviceaccount")
PACKAGES = Path("/tmp/peer")


def mount(*arguments: str) -> None:
    subprocess.run(["/bin/mount", *arguments], check=True)


def make_root(config: dict[str, Any]) -> None:
    """A read-only root with /tmp, the builder's folder and the service account's token; /run as the case wants it."""
    parent, _, name = config["path"].rpartition("/")
    stage = "/mnt"
    mount("-t", "tmpfs", "none", stage)
    for number, source in enumerate((config["builder"], config["api"])):
        Path(f"{stage}/{number}").mkdir()
        mount("--bind", source, f"{stage}/{number}")
    top = "/" + parent.split("/")[1]
    mount("-t", "tmpfs", "none", top)
    if top == "/var":
        Path("/var/run").symlink_to("/run")
    Path(parent, name).mkdir(parents=True)
    mount("--bind", f"{stage}/0", f"{parent}/{name}")
    mount("-t", "tmpfs", "none", "/run")
    SERVICE_ACCOUNT.mkdir(parents=True)
    for file, content in config["account"].items():
        (SERVICE_ACCOUNT / file).write_text(content)
    for directory in ("/", top, "/run", "/dev"):
        if directory != "/run" or not config["run_is_writable"]:
            mount("-o", "remount,bind,ro", directory, directory)
    mount("-t", "tmpfs", "-o", "mode=1777", "none", "/tmp")


def bring_loopback_up() -> None:
    with socket.socket() as any_socket:
        request = struct.pack("16sh14x", b"lo", 1)  # IFF_UP
        fcntl.ioctl(any_socket, 0x8914, request)  # SIOCSIFFLAGS


def forward(listening: socket.socket, path: Path) -> None:
    """Pass connections of the API's port on to a Unix socket outside, as this network has no way out."""

    def pump(source: socket.socket, destination: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                destination.sendall(data)
            destination.shutdown(socket.SHUT_WR)
        except OSError:
            source.close()

    directory = os.open(path.parent, os.O_PATH)  # its own path may be too long for a socket's
    while True:
        accepted, _ = listening.accept()
        outside = socket.socket(socket.AF_UNIX)
        outside.connect(f"/proc/self/fd/{directory}/{path.name}")
        for one, other in ((accepted, outside), (outside, accepted)):
            threading.Thread(target=pump, args=(one, other), daemon=True).start()


def say(**what: Any) -> None:
    os.write(2, json.dumps(what).encode() + b"\n")


class Peer:
    def __init__(self, config: dict[str, Any]) -> None:
        self.bin = config["path"] + "/bin/"
        self.container = config["environment"]
        kept = (*config["propagate"], "LD_LIBRARY_PATH", "LIBPATH", "PATH", "TMPDIR")
        self.environment = {name: value for name, value in config["environment"].items() if name in kept}
        for name in ("source", "metadata", "output", "release", "run"):
            (PACKAGES / name).mkdir(mode=0o700, parents=True)
        for path, content in config["package"].items():
            (PACKAGES / path).write_text(content)
        self.runs: list[subprocess.Popen[bytes]] = []

    def start(self, program: str, *directories: str) -> "subprocess.Popen[bytes]":
        started = subprocess.Popen(
            [self.bin + program, *(str(PACKAGES / name) for name in directories)],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        threading.Thread(target=self.read, args=(program, started), daemon=True).start()
        return started

    def read(self, program: str, started: "subprocess.Popen[bytes]") -> None:
        assert started.stderr is not None
        for line in started.stderr:
            say(program=program, line=line.decode().rstrip("\n").partition("]: ")[2])
        say(program=program, code=started.wait())

    def do(self, command: str) -> None:
        if command == "stop":
            for run in self.runs:
                run.send_signal(signal.SIGTERM)
        elif command.startswith("exec "):  # as kubectl does: in the container's environment
            _, program, *arguments = command.split()
            done = subprocess.run([self.bin + program, *arguments], env=self.container, capture_output=True, text=True)
            say(executed=program, code=done.returncode, stdout=done.stdout, stderr=done.stderr)
        elif command == "processes":
            found = {}
            for process in Path("/proc").glob("[0-9]*"):
                words = (process / "cmdline").read_text().split("\0")
                found[process.name] = [process.stat().st_uid, *words]
            say(processes=found)
        else:
            program, *directories = command.split()
            started = self.start(program, *directories)
            if program == "run":
                self.runs.append(started)


def become_peer(config: dict[str, Any]) -> None:
    """Give up what the peer's user has not, as a container's runtime does before it executes the peer."""
    if config["uid"]:
        for descriptor in (0, 1, 2):
            os.fchown(descriptor, config["uid"], config["uid"])
        os.setgroups(config["groups"])
        os.setresgid(config["uid"], config["uid"], config["uid"])
        os.setresuid(config["uid"], config["uid"], config["uid"])
    python = config["path"] + "/python/bin/python3"
    os.execv(python, [python, "-I", "-S", "-B", "-c", sys.orig_argv[5], sys.argv[1], "peer"])


def main() -> None:
    config = json.loads(sys.argv[1])
    if len(sys.argv) == 2:
        socket.sethostname(config["hostname"])
        make_root(config)
        bring_loopback_up()
        become_peer(config)
    listening = socket.create_server(("127.0.0.1", config["port"]))
    threading.Thread(target=forward, args=(listening, Path("/mnt/1/api")), daemon=True).start()
    peer = Peer(config)
    say(ready=True)
    for line in sys.stdin:
        peer.do(line.strip())
    os._exit(0)


main()
