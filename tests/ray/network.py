"""Machines on one machine: namespaces with addresses, names and processes of their own, on a switch, and Ray in them.

The switch is a namespace too, so nothing of this machine's own network is touched, and traffic passes only between what was made here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent.parent
PORT = 6379
OWN = (Path("/tmp/ray"), Path(f"/tmp/sweep-{os.getuid()}"), Path(f"/dev/shm/sweep-{os.getuid()}"))
"""Where each site sees a folder of its own: Ray's, and those in which tasks of one machine agree who has its devices."""
DELAY = ("netem", "delay", "150ms", "20ms")
NARROW = ("tbf", "rate", "1mbit", "burst", "16kb", "latency", "2s")
"""In place of a delay, where the kernel knows none: what queues for a thin line is late, too."""


def ip(*arguments):
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


def why_not():
    """Why no network can be made here; None if it can."""
    lacking = [tool for tool in ("ip", "tc", "unshare", "nsenter") if not shutil.which(tool)]
    if lacking:
        return f"{lacking[0]} is not installed (apt-get install iproute2 util-linux)"
    name = f"sw-try-{os.getpid()}"
    try:
        ip("netns", "add", name)
        ip("netns", "del", name)
    except subprocess.CalledProcessError as error:
        return f"this user may not make network namespaces: {error.stderr.strip()}"
    return None


class Network:
    """Sites on one switch, in 10.77.0.0/24."""

    def __init__(self):
        self._mark = f"sw{os.getpid()}"
        self.switch = f"{self._mark}-switch"
        self._sites = []
        self.folder = Path(tempfile.mkdtemp(prefix="sw", dir="/tmp"))  # short: sockets have short names
        for shared in OWN:
            shared.mkdir(mode=0o700, exist_ok=True)
        ip("netns", "add", self.switch)
        ip("-n", self.switch, "link", "add", "lan", "type", "bridge")
        ip("-n", self.switch, "link", "set", "lan", "up")

    def add(self, name):
        site = Site(self, name, f"{self._mark}-{name}", f"port{len(self._sites)}", f"10.77.0.{len(self._sites) + 1}")
        self._sites.append(site)
        return site

    def close(self):
        for site in self._sites:
            site.kill()
            ip("netns", "del", site.namespace)
        ip("netns", "del", self.switch)
        shutil.rmtree(self.folder, ignore_errors=True)


class Site:
    """One machine: an address, a cable to the switch, a name, processes of its own, and folders of its own in the places of ``OWN``."""

    def __init__(self, network, name, namespace, cable, address):
        self._network, self.name, self.namespace, self._cable, self.address = network, name, namespace, cable, address
        self.folder = network.folder / cable
        self.folder.mkdir()
        self._own = {place: self.folder / str(number) for number, place in enumerate(OWN)}
        for folder in self._own.values():
            folder.mkdir(mode=0o700)
        switch = network.switch
        ip("netns", "add", namespace)
        ip("-n", switch, "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        ip("-n", switch, "link", "set", cable, "master", "lan", "up")
        ip("-n", namespace, "addr", "add", f"{address}/24", "dev", "eth0")
        ip("-n", namespace, "link", "set", "eth0", "up")
        ip("-n", namespace, "link", "set", "lo", "up")
        # It leads nowhere. Ray learns a machine's own address from the way that leads out.
        ip("-n", namespace, "route", "add", "default", "via", "10.77.0.254")
        self.boot()

    def boot(self):
        """Start the first process. Ray looks for its own among all that it sees, and shall see no other machine's."""
        binds = " && ".join(f"mount --bind {folder} {place}" for place, folder in self._own.items())
        first = f"hostname {self.name} && {binds} && echo up && exec sleep infinity"
        command = ["ip", "netns", "exec", self.namespace, "unshare", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc"]
        self._machine = subprocess.Popen([*command, "sh", "-c", first], stdout=subprocess.PIPE, text=True)
        assert self._machine.stdout.readline() == "up\n"
        self._first = psutil.Process(self._machine.pid).children()[0].pid

    def kill(self):
        """Switch it off: with the first process all others end."""
        self._machine.kill()
        self._machine.communicate()

    def reboot(self):
        self.kill()
        self.boot()

    def cut(self):
        """Pull the cable."""
        ip("-n", self._network.switch, "link", "set", self._cable, "down")

    def mend(self):
        """Put it back."""
        ip("-n", self._network.switch, "link", "set", self._cable, "up")

    def slow(self):
        """Make every packet late, both ways."""
        for namespace, device in ((self._network.switch, self._cable), (self.namespace, "eth0")):
            command = ["tc", "-n", namespace, "qdisc", "add", "dev", device, "root"]
            if subprocess.run([*command, *DELAY], capture_output=True, check=False).returncode:
                subprocess.run([*command, *NARROW], capture_output=True, check=True)

    def start(self, *command, **streams):
        """Run ``command`` here."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        env |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
        enter = ["nsenter", "--target", str(self._first), "--mount", "--uts", "--net", "--pid"]
        return subprocess.Popen([*enter, *command], env=env, **streams)

    def ray(self, *arguments):
        """A head, or a node that joins one."""
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--node-ip-address={self.address}"]
        command += ["--disable-usage-stats", "--object-store-memory=80000000", *arguments]
        with (self.folder / "start.log").open("a") as log:
            return self.start(*command, stdout=log, stderr=subprocess.STDOUT)

    def sweep(self, *arguments):
        """A command of this project."""
        piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return self.start(sys.executable, "-m", "orchestrator", *arguments, **piped)

    def started(self):
        """How often Ray has come up here."""
        log = self.folder / "start.log"
        return log.read_text().count("Ray runtime started") if log.exists() else 0
