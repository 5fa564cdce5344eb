"""What another user of the same nodes can do to a cluster: nothing. And where its token shows: nowhere."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from harness import BASE, CHECKOUT
from test_batch import DEMO, Job
from test_provider import Launcher

HERE = CHECKOUT / "tests/cluster/slurm"
HEAD, WORKER = NODES = ("node1", "node2")
REFUSED = {"UNAUTHENTICATED", "401", "403"}
NOT_ASKED = {"no answer", "UNIMPLEMENTED", "404", "405"}  # another of Ray's servers, or none of them
INIT = "import ray, sys; ray.init(sys.argv[1], logging_level='error'); print('joined', len(ray.nodes()))"
ONE_TRY = {"RAY_gcs_server_port_wait_time_s": "1"}  # else Ray tries for minutes


class Victim:
    """A cluster of the first user on two nodes."""

    def __init__(self, slurm, job):
        self.slurm = slurm
        self.job = job
        self.address = slurm.run(f"cat /tmp/raylab-{job}-*/ray/ray_current_cluster", node=HEAD).out
        slurm.run("umask 077; mkdir -p ~/.ray; printf %064d 0 > ~/.ray/auth_token", user="eve")  # one of her own

    def ports(self, node):
        """HOST:PORT of all that the first user's processes listen on, as that node reaches it."""
        uid = self.slurm.home().stat().st_uid
        found = set()
        for line in self.slurm.run("ss -ltneH", user="root", node=node).out.splitlines():
            if f"uid:{uid} " in line:
                host, _, port = line.split()[3].rpartition(":")
                host = host.strip("[]").removeprefix("::ffff:")
                found.add(f"{host if host[0].isdigit() and host[0] != '0' else '127.0.0.1'}:{port}")
        return sorted(found)

    def knock(self, node, ports, user, file="~/.ray/auth_token"):
        return json.loads(self.slurm.run(f"python {HERE}/knock.py {file} {' '.join(ports)}", user=user, node=node).out)

    def init(self, user, address, node=HEAD, **environment):
        command = ["python", "-c", INIT, address]
        return self.slurm.run(command, user=user, node=node, environment=environment, check=False)


@pytest.fixture(params=["ray up", "sbatch"])
def victim(request, slurm):
    if request.param == "ray up":
        ray = Launcher(slurm, slurm_of={"head": {"nodelist": HEAD}, "gpu": {"nodelist": WORKER}})
        ray("up -y")
        holding = ray.popen("submit", f"{HERE}/hold.py {slurm.shared} 1")
        ray.wait(lambda: (slurm.shared / "begun0").exists(), 90, "a worker has begun")
        yield Victim(slurm, ray.jobs("head")[0]["job_id"])
        (slurm.shared / "release").touch()
        assert holding.wait(60) == 0
        ray("down -y")
    else:
        job = Job(slurm, f"--nodes=2 --nodelist={HEAD},{WORKER}", "doctor --seconds 600")
        job.wait_for(lambda: "2 nodes (node1, node2)" in job.log)
        yield Victim(slurm, job.id)
        slurm.run(f"scancel {job.id}")


def test_another_user_can_neither_connect_nor_read(victim, slurm):
    for node in NODES:
        ports = victim.ports(node)
        answers = victim.knock(node, ports, "eve", "/dev/null"), victim.knock(node, ports, "eve")
        for question, of_owner in victim.knock(node, ports, "ada").items():
            open_to_owner = {address for address, answer in of_owner.items() if answer not in NOT_ASKED}
            assert open_to_owner or node != HEAD, f"nothing serves {question}: the question is no test"
            for of_other in answers:
                assert {of_other[question][address] for address in open_to_owner} <= REFUSED, (question, of_other)
                assert set(of_other[question].values()) <= REFUSED | NOT_ASKED, (question, of_other)

    joined = victim.init("ada", victim.address, RAY_AUTH_MODE="token")
    assert joined.out == "joined 2\n", joined.err
    for node, address, mode in (
        (HEAD, victim.address, "token"),
        (HEAD, victim.address, "disabled"),
        (HEAD, "auto", "token"),
        (WORKER, victim.address, "token"),
    ):
        tried = victim.init("eve", address, node, RAY_AUTH_MODE=mode, **ONE_TRY)
        assert tried.code != 0
        assert "joined" not in tried.out
        assert "auth" in tried.err.lower(), tried.err

    answers = victim.knock(HEAD, victim.ports(HEAD), "ada")["/api/version"]
    [dashboard] = [where for where, answer in answers.items() if answer == "200"]
    submit = f"RAY_AUTH_MODE=token timeout 60 ray job submit --address http://{dashboard} -- echo I ran"
    assert "\nI ran\n" in slurm.run(submit, node=HEAD).out
    tried = slurm.run(submit, user="eve", node=HEAD, check=False)
    assert tried.code != 0
    assert "InvalidAuthToken" in tried.err or "authentication" in tried.err.lower(), tried.err
    assert dashboard.startswith("127.0.0.1:")  # so on other nodes nothing answers at all

    for node in NODES:
        everything = r"find /tmp /dev/shm -maxdepth 1 -user ada -printf '%m %p\n'"
        found = slurm.run(everything, user="root", node=node).out.splitlines()
        assert any(line.startswith("700 /tmp/raylab-") for line in found), found
        assert not [line for line in found if line.split()[0] not in ("700", "600")]
        readable = "find /tmp /dev/shm /run ~ada -user ada -readable 2>/dev/null"
        assert not slurm.run(readable, user="eve", node=node, check=False).out
    tried = slurm.run(f"timeout 20 srun --overlap --jobid={victim.job} id", user="eve", check=False)
    assert "denied" in tried.err


def test_the_token_is_in_no_command_line_and_in_no_log(slurm):
    watch = "while :; do ps -ww -eo args=; sleep 0.05; done"
    places = ("login", *slurm.nodes)
    seen = [BASE / f"log/ps-{node}" for node in places]
    watchers = [
        slurm.popen(watch, user="root", node=node, stdout=file.open("w"), stderr=subprocess.DEVNULL)
        for node, file in zip(places, seen, strict=True)
    ]

    def keep(node):
        """Logs that are removed with the node's folder."""
        slurm.run(f"cp -r /tmp/raylab-* {slurm.shared}", user="root", node=node)

    try:
        ray = Launcher(slurm)
        ray("up -y")
        script = slurm.shared / "count.py"
        script.write_text("import ray\nray.init()\nprint(len(ray.nodes()))\n")
        ray("submit", str(script))
        ray("exec", "'ray status && ray list nodes'")
        keep(ray.jobs()[0]["nodes"])
        ray("down -y")
        job = Job(slurm, "--nodes=2", f"{DEMO} train.epochs=1 data.max_clips=48 data.batch_size=4 resources.workers=2")
        job.wait_for(lambda: job.trial())
        logs = slurm.run(
            "cp -r /tmp/raylab-* /var/tmp/raylab-slurm/shared/", user="root", node=job.show()["batch_host"]
        )
        assert logs.code == 0
        assert job.wait() == 0, job.log
    finally:
        for watcher in watchers:
            watcher.kill()
    token = slurm.home() / ".ray/auth_token"
    assert re.fullmatch(r"[0-9a-f]{64}", token.read_text())
    assert "raylab.cluster" in seen[1].read_text()
    assert files_with(token.read_text(), BASE) == [token]


def files_with(text, folder):
    """Files beneath a folder that hold a text."""
    found = subprocess.run(["grep", "-rlFs", "-f", "-", str(folder)], input=text, capture_output=True, text=True)
    return [Path(line) for line in found.stdout.splitlines()]
