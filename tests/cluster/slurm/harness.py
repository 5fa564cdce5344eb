"""A real SLURM of several nodes on this machine, which touches nothing outside its folder.

Each node is a network, PID, UTS and mount namespace of its own: hostname, IP address, processes, `/tmp`, `/dev/shm` and
users' names are its own, the rest of the file system is shared, as on a cluster. So is the login node, where
slurmctld runs; a path to be seen by all lies in `Slurm.shared` or in a home. Powering a node off kills all it runs.

Needs root on Linux, and Debian's packages `slurm-wlm munge iproute2`.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[3]
BASE = Path("/var/tmp/raylab-slurm")  # noqa: S108 - short, shared, and below no private folder
LOGIN = "login"
NETWORK = "10.77.0"
GPUS = 2
COMMANDS = ("slurmctld", "slurmd", "sbatch", "munged", "ip", "nsenter", "unshare", "setpriv", "runuser")

SLURM_CONF = """
ClusterName=fake
SlurmctldHost=login({network}.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=cred_expire=5,socket={base}/munge/socket
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_interval=1,sched_min_interval=100000
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
SlurmdTimeout=15
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool/%n
SlurmctldPidFile={base}/run/slurmctld.pid
SlurmdPidFile={base}/run/slurmd-%n.pid
SlurmctldLogFile={base}/log/slurmctld.log
SlurmdLogFile={base}/log/slurmd-%n.log
GresTypes=gpu
{nodes}
PartitionName=main Nodes={names} Default=YES MaxTime=INFINITE State=UP
"""

# A folder of its own, or a private one above what all must reach, hides under a new one; what is needed shows again.
INIT = """
set -e
hostname {name}
{mounts}
mount --bind {base}/etc/hosts /etc/hosts
mount --bind {base}/etc/passwd /etc/passwd
mount --bind {base}/etc/group /etc/group
mount --bind {base}/etc/resolv.conf /etc/resolv.conf
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
{daemon} &
while kill -0 $! 2>/dev/null; do wait -n || true; done
"""


@dataclass
class Done:
    """What a command said."""

    code: int
    out: str
    err: str


class Slurm:
    """The cluster, from `start()` to `stop()`.

    Attributes:
        nodes: names of the compute nodes, `node1` and so on, each with `cpus` CPUs and two GPUs, which are `/dev/null`.
        users: names; the first is who runs commands unless another is named.
        shared: a folder that all nodes and all users see and may write to, empty at the start.
    """

    users = ("ada", "eve")

    def __init__(self, nodes: int = 3, cpus: int = 8) -> None:
        self.nodes = tuple(f"node{i + 1}" for i in range(nodes))
        self.cpus = cpus
        self.shared = BASE / "shared"
        self._powered: dict[str, subprocess.Popen[bytes]] = {}
        self._lock: Any = None

    @staticmethod
    def missing() -> str:
        """Why it cannot run here; empty when it can."""
        if sys.platform != "linux":
            return "a SLURM of namespaces needs Linux"
        if os.geteuid():
            return "a SLURM of namespaces needs root"
        if lacking := [name for name in COMMANDS if not shutil.which(name)]:
            return f"no {', '.join(lacking)}: apt-get install slurm-wlm munge iproute2"
        return ""

    def start(self) -> None:
        """Raises RuntimeError when the nodes are not idle within 30 s, or the machine refuses namespaces."""
        self._lock = BASE.with_suffix(".lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)  # one a machine
        self._remove_network()
        shutil.rmtree(BASE, ignore_errors=True)
        for folder in ("state", "spool", "log", "run", "dev", "etc", "home", "munge", "shared", "disk"):
            (BASE / folder).mkdir(parents=True)
        self.shared.chmod(0o1777)
        for gpu in range(GPUS):
            os.mknod(BASE / f"dev/gpu{gpu}", 0o20666, os.makedev(1, 3))
        self._write_settings()
        try:
            self.up(LOGIN)
            for node in self.nodes:
                self.up(node)
            self.wait_idle()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        for node in [*self.nodes, LOGIN]:
            self.down(node)
        self._remove_network()
        if self._lock:
            self._lock.close()

    def up(self, node: str) -> None:
        """Power a node on."""
        space, number = f"rs-{node}", (LOGIN, *self.nodes).index(node)
        _ip("netns", "add", space)
        _ip("-n", space, "link", "set", "lo", "up")
        if node == LOGIN:
            _ip("-n", space, "link", "add", "eth0", "type", "bridge")
        else:
            _ip("-n", space, *f"link add eth0 type veth peer name v{number} netns rs-{LOGIN}".split())
            _ip("-n", f"rs-{LOGIN}", *f"link set v{number} master eth0 up".split())
        _ip("-n", space, "addr", "add", f"{self.address(node)}/24", "dev", "eth0")
        _ip("-n", space, "link", "set", "eth0", "up")
        if node == LOGIN:
            munge = f"--socket={BASE}/munge/socket --key-file={BASE}/munge/key --seed-file={BASE}/munge/seed"
            daemon = f"munged --foreground --force {munge} --log-file={BASE}/log/munged.log " + (
                f"--pid-file={BASE}/run/munged.pid & for _ in $(seq 100); do [ -S {BASE}/munge/socket ] && break; "
                f"sleep .05; done; slurmctld -D -c -f {BASE}/slurm.conf"
            )
        else:
            daemon = f"slurmd -D -f {BASE}/slurm.conf -N {node}"
        script = BASE / f"run/{node}.sh"
        script.write_text(INIT.format(name=node, base=BASE, mounts="\n".join(self._mounts(node)), daemon=daemon))
        kill_with_parent = ["setpriv", "--pdeathsig", "KILL"]
        namespaces = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--uts", "--mount-proc"]
        with (BASE / f"log/{node}.log").open("w") as log:
            self._powered[node] = subprocess.Popen(
                [*kill_with_parent, "ip", "netns", "exec", space, *namespaces, "bash", str(script)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={"PATH": os.environ["PATH"], "SLURM_CONF": f"{BASE}/slurm.conf"},
            )

    def down(self, node: str) -> None:
        """Power a node off: all its processes are killed, its local disk is kept. SLURM notices within 30 s."""
        if power := self._powered.pop(node, None):
            power.kill()
            power.wait()
            for _ in range(100):
                if not _said("ip", "netns", "pids", f"rs-{node}").strip():
                    break
                time.sleep(0.1)
            if node in self.nodes:
                _ip("-n", f"rs-{LOGIN}", "link", "del", f"v{self.nodes.index(node) + 1}", check=False)
            _ip("netns", "del", f"rs-{node}", check=False)

    def address(self, node: str) -> str:
        return f"{NETWORK}.{1 if node == LOGIN else 10 + self.nodes.index(node) + 1}"

    def home(self, user: str = users[0]) -> Path:
        """The user's home folder, on all nodes."""
        return BASE / "home" / user

    def run(
        self,
        command: str | list[str],
        *,
        user: str = users[0],
        node: str = LOGIN,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout: float = 60,
        check: bool = True,
    ) -> Done:
        """Run a command on a node, not in a job, as a login shell of that user would.

        Args:
            command: for bash, or a list of arguments.
            user: one of `users`, or root.
            timeout: seconds; the command is killed then.

        Raises:
            AssertionError: it failed and `check` is on, or took longer.
        """
        done = self._enter(command, user, node, environment, cwd, timeout)
        assert done.code != 124, f"longer than {timeout:g} s: {command}\n{done.out}\n{done.err}"
        assert not check or done.code == 0, f"exit code {done.code}: {command}\n{done.out}\n{done.err}"
        return done

    def popen(self, command: str | list[str], *, user: str = users[0], node: str = LOGIN, **how: Any) -> Any:
        """A `subprocess.Popen` of such a command, which the caller ends."""
        environment = how.pop("environment", None)
        return subprocess.Popen(self._entering(command, user, node, environment, how.pop("cwd", None), None), **how)

    def squeue(self) -> list[dict[str, Any]]:
        """Every user's jobs that have not ended, as `squeue --json` has them."""
        jobs = json.loads(self.run("squeue --json", user="root").out)["jobs"]
        return [job for job in jobs if job["job_state"] in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING")]

    def wait_idle(self, timeout: float = 30) -> None:
        """Until every node is idle and no job is left.

        Raises:
            RuntimeError: they are not within `timeout` seconds.
        """
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            states = self.run("sinfo -h -N -o %T", user="root", check=False).out.split()
            if states == ["idle"] * len(self.nodes):
                return
            time.sleep(0.1)
        logs = "\n".join(f"== {log.name}\n{log.read_text()[-2000:]}" for log in sorted((BASE / "log").iterdir()))
        raise RuntimeError(f"SLURM's nodes are {states}, not idle\n{logs}")

    def processes(self, node: str) -> list[str]:
        """Command lines of all that runs on a node, as `ps` shows them to root, spaces for NULs."""
        return self.run("ps -ww -eo args=", user="root", node=node).out.splitlines()

    def _write_settings(self) -> None:
        names = f"node[1-{len(self.nodes)}]"
        rows = [
            f"NodeName={node} NodeHostname={node} NodeAddr={self.address(node)} CPUs={self.cpus} RealMemory=64000 "
            f"Gres=gpu:{GPUS} State=UNKNOWN"
            for node in self.nodes
        ]
        etc, everyone = BASE / "etc", (LOGIN, *self.nodes)
        (BASE / "slurm.conf").write_text(
            SLURM_CONF.format(base=BASE, network=NETWORK, nodes="\n".join(rows), names=names)
        )
        (BASE / "gres.conf").write_text(f"NodeName={names} Name=gpu File={BASE}/dev/gpu[0-{GPUS - 1}]\n")
        (BASE / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        (BASE / "munge").chmod(0o755)
        key = BASE / "munge/key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(128))
        (etc / "hosts").write_text(
            "127.0.0.1 localhost\n" + "".join(f"{self.address(node)} {node}\n" for node in everyone)
        )
        (etc / "resolv.conf").touch()  # no name server is better than one that does not answer
        for number, user in enumerate(self.users, start=61001):
            self.home(user).mkdir(mode=0o700)
            os.chown(self.home(user), number, number)
        for file, row in (("passwd", "{0}:x:{1}:{1}::{2}:/bin/bash\n"), ("group", "{0}:x:{1}:\n")):
            rows = [row.format(user, uid, self.home(user)) for uid, user in enumerate(self.users, start=61001)]
            (etc / file).write_text(Path("/etc", file).read_text() + "".join(rows))

    def _mounts(self, node: str) -> list[str]:
        """Commands that give the node its own `/tmp` and let every user reach Python and the checkout."""
        needed = sorted({CHECKOUT, Path(sys.prefix), Path(sys.base_prefix)})
        hidden = {Path("/tmp")}  # noqa: S108
        for path in needed:
            hidden.update(above for above in path.parents if not above.stat().st_mode & 0o001)
        needed = [path for path in needed if not any(path != other and path.is_relative_to(other) for other in needed)]
        kept = {path: BASE / f"run/{node}-{i}" for i, path in enumerate(needed) if hidden & set(path.parents)}
        commands = []
        for path, stash in kept.items():
            stash.mkdir(exist_ok=True)
            commands.append(f"mount --bind {path} {stash}")
        for number, folder in enumerate(sorted(hidden)):
            disk = BASE / f"disk/{node}-{number}"
            disk.mkdir(exist_ok=True)
            disk.chmod(0o1777)
            commands.append(f"mount --bind {disk} {folder}")
        for path, stash in kept.items():
            commands += [f"mkdir -p {path}", f"mount --bind {stash} {path}"]
        return commands

    def _entering(
        self,
        command: str | list[str],
        user: str,
        node: str,
        environment: Mapping[str, str] | None,
        cwd: Path | None,
        timeout: float | None,
    ) -> list[str]:
        home = Path("/root") if user == "root" else self.home(user)
        variables = {
            "HOME": str(home),
            "USER": user,
            "LOGNAME": user,
            "SHELL": "/bin/bash",
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            "PATH": f"{sys.prefix}/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "PYTHONPATH": str(CHECKOUT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "SLURM_CONF": f"{BASE}/slurm.conf",
            **(environment or {}),
        }
        unshare = self._powered[node].pid
        while not (children := Path(f"/proc/{unshare}/task/{unshare}/children").read_text().split()):
            time.sleep(0.02)  # it has not forked yet
        first = children[0]
        line = command if isinstance(command, str) else shlex.join(command)
        line = f"cd {shlex.quote(str(cwd or home))} && {line}"
        limit = ["timeout", "--kill-after=5", f"{timeout:g}"] if timeout else []
        assignments = [f"{name}={value}" for name, value in variables.items()]
        as_user = ["runuser", "-u", user, "--", "env", "-i", *assignments]
        return ["nsenter", "--all", f"--target={first}", "--", *as_user, *limit, "bash", "-c", line]

    def _enter(self, command: Any, user: str, node: str, environment: Any, cwd: Any, timeout: float) -> Done:
        arguments = self._entering(command, user, node, environment, cwd, timeout)
        done = subprocess.run(arguments, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout + 30)
        return Done(done.returncode, done.stdout, done.stderr)

    def _remove_network(self) -> None:
        for line in _said("ip", "netns", "list").splitlines():
            if line.startswith("rs-"):
                _ip("netns", "del", line.split()[0], check=False)


def _ip(*arguments: str, check: bool = True) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if check and done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout
