"""`ray up cluster/vsc.yaml` and its kin, on a real SLURM: nothing but the three marked places is changed in it."""

import re
import subprocess
import sys
import time

import yaml
from harness import CHECKOUT

RAY = "timeout 300 ray"
QUICK = {"AUTOSCALER_UPDATE_INTERVAL_S": "2", "RAY_AUTOSCALER_PENDING_NODE_IDLE_TIMEOUT_S": "5"}


class Launcher:
    """`ray up` and the rest, as a user types them on the login node."""

    def __init__(self, slurm, name="raylab", slurm_of=None):
        config = yaml.safe_load((CHECKOUT / "cluster/vsc.yaml").read_text())
        config["cluster_name"] = name
        config["idle_timeout_minutes"] = 0.2
        config["max_workers"] = 2
        provider = config["provider"]
        provider["slurm"] |= {"account": "lp_test", "clusters": None, "time": "20:00"}
        provider["python"] = sys.executable
        provider["setup"] = [line for line in provider["setup"] if not line.startswith("module")]
        for node_type, share in (("head", {"cpus-per-task": 2}), ("gpu", {"cpus-per-task": 4})):
            directives = config["available_node_types"][node_type]["node_config"]["slurm"]
            directives |= {"partition": "main", "time": "20:00", **share, **(slurm_of or {}).get(node_type, {})}
        self.slurm = slurm
        self.file = slurm.shared / f"{name}.yaml"
        self.file.write_text(yaml.safe_dump(config))
        self.file.chmod(0o644)
        self.environment = {"VSC_DATA": str(slurm.shared), "VSC_SCRATCH": str(slurm.shared), **QUICK}

    def __call__(self, command, *words, timeout=120, **how):
        line = f"{RAY} {command} {self.file} {' '.join(words)}"
        return self.slurm.run(line, environment=self.environment, timeout=timeout, **how)

    def popen(self, command, *words):
        line = f"{RAY} {command} {self.file} {' '.join(words)}"
        return self.slurm.popen(
            line, environment=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def jobs(self, kind=""):
        return [job for job in self.slurm.squeue() if job["name"].endswith(kind)]

    def wait(self, true, seconds, what):
        end = time.monotonic() + seconds
        while not true():
            said = "\n".join(file.read_text()[-3000:] for file in self.slurm.home().glob(".raylab/clusters/*/*.log"))
            jobs = [(job["job_id"], job["name"], job["job_state"], job["nodes"]) for job in self.jobs()]
            assert time.monotonic() < end, f"not after {seconds} s: {what}\n{jobs}\n{said}"
            time.sleep(0.5)


def nodes_of(status):
    """Counts of nodes by type in `ray status`, those that are up."""
    active = status.split("Pending:")[0]
    return {kind: int(count) for count, kind in re.findall(r"^ (\d+) (\w+)$", active, re.MULTILINE)}


SWEEP = (
    "raylab tune epic_phase2 --demo search.trials=3 search.scheduler=none data.kitchen=tiny data.max_clips=48 "
    "train.epochs=2 resources.gpus_per_worker=0 resources.cpus_per_worker=3"
)


def test_commands(slurm):
    """Ray's other commands reach the head; exit codes and output come back."""
    ray = Launcher(slurm)
    ray("up -y")

    assert ray("exec", "'echo $((40 + 2)) >&2; exit 7'", check=False).code == 7
    where = ray("exec", "'hostname; pwd; which python'").out
    assert f"node1\n{slurm.shared}/raylab\n{sys.prefix}/bin/python\n" in where

    assert "monitor.log" in ray("exec", "'ls /tmp/ray/session_latest/logs/'").out  # where `ray monitor` looks

    script = slurm.shared / "nodes.py"
    script.write_text("import ray, sys\nray.init()\nprint(sys.argv[1], len(ray.nodes()))\n")
    assert "first 1" in ray("submit", f"{script} first").out

    attach = f"{RAY} attach {ray.file}"
    typed = slurm.run(
        f"(echo 'echo on $(hostname) as $(tty)'; echo exit) | script -qec '{attach}' /dev/null",
        environment=ray.environment,
    )
    assert re.search(r"on node1 as /dev/pts/", typed.out), typed.out

    (slurm.shared / "there").write_text("content")
    ray("rsync-up", f"{slurm.shared}/there '~/here/'")
    assert (slurm.home() / "here/there").read_text() == "content"
    ray("rsync-down", f"'~/here/' {slurm.shared}/back/")
    assert (slurm.shared / "back/there").read_text() == "content"

    forward = ray.popen("dashboard", "--port 18265")
    try:
        ask = "curl -s -m 10 -o /dev/null -w '%{http_code}' http://127.0.0.1:18265/api/cluster_status"
        ray.wait(lambda: slurm.run(ask, check=False).out in ("401", "403"), 20, "who has no token is refused")
        bearer = 'printf "Authorization: Bearer %s" "$(cat ~/.ray/auth_token)"'
        assert slurm.run(f"{bearer} | {ask} -H @-").out == "200"
    finally:
        forward.terminate()
        forward.wait(20)

    ray("down -y")
    assert slurm.squeue() == []


def test_lost_workers_are_replaced(slurm):
    """Whatever ends a worker's job, another one comes, and only one."""
    ray = Launcher(slurm, slurm_of={"gpu": {"exclude": "node1"}})
    ray("up -y")
    work = slurm.shared / "hold"
    work.mkdir(mode=0o777)
    work.chmod(0o777)
    holding = ray.popen("submit", f"{CHECKOUT}/tests/cluster/slurm/hold.py {work} 1")
    begun = work / "begun0"

    def times():
        return len(begun.read_text().split()) if begun.exists() else 0

    ids = []

    def replaced():
        ray.wait(lambda: times() == len(ids) + 1, 180, f"the task began {len(ids) + 1} times")
        jobs = [job for job in ray.jobs("-worker") if job["job_state"] != "COMPLETING"]  # on a node that is off
        assert [job["job_id"] in ids for job in jobs] == [False], [(job["job_id"], job["job_state"]) for job in jobs]
        ids.append(jobs[0]["job_id"])
        return jobs[0]

    try:
        job = replaced()
        slurm.run(f"scancel {job['job_id']}")
        job = replaced()
        slurm.run("pkill -KILL --full '[r]aylet/raylet'", user="root", node=job["nodes"])  # its job fails
        job = replaced()
        slurm.down(job["nodes"])
        job = replaced()
        slurm.run(f"scontrol update JobId={job['job_id']} TimeLimit=1", user="root")
        replaced()
        (work / "release").touch()
        assert holding.wait(60) == 0
        assert "began [5]" in holding.stdout.read()
    finally:
        holding.kill()
    slurm.run("scancel --name=ray-raylab-head")
    ray("down -y")  # of a cluster without a head
    assert slurm.squeue() == []


def test_queued_workers(slurm):
    """A job that waits in the queue is not asked for twice, and is cancelled when nothing needs it any more."""
    ray = Launcher(slurm, slurm_of={"gpu": {"exclude": "node1"}})
    ray("up -y")
    slurm.run("sbatch --nodes=2 --exclusive --wrap 'sleep 600'", user="eve")
    holding = ray.popen("submit", f"{CHECKOUT}/tests/cluster/slurm/hold.py {slurm.shared} 1")
    try:
        ray.wait(lambda: ray.jobs("-worker"), 60, "a worker is asked for")
        [worker] = ray.jobs("-worker")
        assert worker["job_state"] == "PENDING"
        for _ in range(10):
            time.sleep(1)
            assert [job["job_id"] for job in ray.jobs("-worker")] == [worker["job_id"]]
        assert "gpu" in ray("exec", "'ray status'").out.split("Pending:")[1]
    finally:
        slurm.run("pkill -INT --full hold.py", check=False, node="node1")
        holding.wait(30)
    ray.wait(lambda: not ray.jobs("-worker"), 60, "it is cancelled")
    ray("down -y")
    assert [job["user_name"] for job in slurm.squeue()] == ["eve"]


def test_refusals(slurm):
    """What is wrong with the file is said in a line."""
    unedited = Launcher(slurm, "unedited")
    unedited.file.write_text((CHECKOUT / "cluster/vsc.yaml").read_text())
    done = unedited("up -y", check=False)
    assert done.code != 0
    assert "account = 'lp_EDIT'" in done.out + done.err
    assert "Traceback" not in done.out + done.err

    elsewhere = Launcher(slurm, "elsewhere")
    config = yaml.safe_load(elsewhere.file.read_text())
    config["available_node_types"]["head"]["node_config"]["slurm"]["partition"] = "nowhere"
    elsewhere.file.write_text(yaml.safe_dump(config))
    done = elsewhere("up -y", check=False)
    assert done.code != 0
    assert "set a partition that `sinfo --summarize` lists" in done.out + done.err
    assert "Traceback" not in done.out + done.err

    missing = Launcher(slurm, "missing")
    config = yaml.safe_load(missing.file.read_text())
    config["provider"]["python"] = "/nowhere/bin/python"
    missing.file.write_text(yaml.safe_dump(config))
    done = missing("up -y", check=False)
    assert done.code != 0
    assert "no Python at /nowhere/bin/python" in done.out + done.err
    assert slurm.squeue() == []


def test_up_sweep_down(slurm):
    """One head; a sweep adds a job for each node it can use; idle, they go; `ray down` leaves nothing."""
    ray = Launcher(slurm)
    assert "Ray runs at" in ray("up -y").out
    [head] = ray.jobs()
    assert head["name"] == "ray-raylab-head"
    again = ray("up -y")
    assert "Ray runs at" in again.out
    assert "already: nothing to start" in again.out
    assert [job["job_id"] for job in ray.jobs()] == [head["job_id"]]
    assert slurm.address(head["nodes"]) == ray("get-head-ip").out.splitlines()[-1]
    assert nodes_of(ray("exec", "'ray status'").out) == {"head": 1}

    sweep = ray.popen("exec", f"'{SWEEP}'")
    try:
        seen, most = set(), 0
        while sweep.poll() is None:
            workers = {job["job_id"] for job in ray.jobs("-worker")}
            seen, most = seen | workers, max(most, len(workers))
            time.sleep(0.5)
        out = sweep.stdout.read()
    finally:
        sweep.kill()
    assert sweep.returncode == 0, out
    assert most == 2
    assert len(seen) == 2, "nothing was asked for twice"
    assert "3 of 3 trials" in out
    ray.wait(lambda: not ray.jobs("-worker"), 60, "idle workers are cancelled")
    ray.wait(lambda: nodes_of(ray("exec", "'ray status'").out) == {"head": 1}, 30, "and gone from Ray")

    ray("down -y")
    assert slurm.squeue() == []
