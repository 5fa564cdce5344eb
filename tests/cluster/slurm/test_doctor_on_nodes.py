"""`raylab doctor` in SLURM jobs: what it says of nodes it does not run on, and of what SLURM gave."""

import json

from test_batch import Job

DOCTOR = "doctor --json --seconds 1"


def rows(text):
    """What the doctor printed into a job's log, by what it is about; other nodes' rows begin with the node's name."""
    found = json.loads(text[text.index("[\n") : text.rindex("]") + 1])
    return {row["what"]: row for row in found}


def test_two_healthy_nodes_exchange_data(slurm):
    job = Job(slurm, "--nodes=2 --nodelist=node1,node2 --gpus-per-node=0 --cpus-per-task=2 --time=60", DOCTOR)
    assert job.wait() == 0, job.log
    found = rows(job.log)
    assert [row for row in found.values() if row["state"] == "failure"] == []
    assert found["SLURM"]["detail"].startswith(f"job {job.id} on node1, node2, 2 CPUs and 0 GPUs on each, ")
    assert found["Ray"]["detail"].startswith("2 nodes (node1, node2): 4 CPUs, 0 GPUs")
    assert found["node2"]["state"] == "ok"
    assert found["all-reduce"]["detail"].startswith("2 workers on 2 nodes (gloo): 8 MiB in ")


def test_what_is_wrong_on_another_node_is_said_with_its_name_and_fails_the_job(slurm):
    listen = "import socket, time; s = socket.create_server(('127.0.0.1', 8265)); time.sleep(300)"
    server = slurm.popen(["python", "-c", listen], user="eve", node="node2")
    slurm.run("mount -t tmpfs -o size=1m tmpfs /dev/shm", user="root", node="node2")
    try:
        options = "--nodes=2 --nodelist=node1,node2 --gpus-per-node=1 --cpus-per-task=2 --time=8"
        job = Job(slurm, options, DOCTOR)
        assert job.wait() == 1, job.log
    finally:
        slurm.run("umount /dev/shm", user="root", node="node2")
        server.kill()
    found = rows(job.log)
    assert found["SLURM"]["state"] == "warning"  # it ends soon
    assert found["GPUs"]["detail"].startswith("SLURM gave 1, PyTorch sees 0: ")
    assert found["node2: GPUs"]["state"] == "failure"
    assert found["node2: /dev/shm"]["state"] == "failure"
    assert found["node2: ports"]["detail"] == "taken: 8265 (its dashboard) by eve"
    assert "node2: Ray's GPUs" not in found
    assert found["all-reduce"]["state"] == "ok"  # over CPUs: what GPUs lack is said above


def test_ray_started_by_hand_without_gpus_and_not_everywhere_is_a_failure(slurm):
    script = slurm.shared / "by-hand.sh"
    script.write_text("""#!/bin/bash
    python -m raylab.cluster.node head --num-gpus=0 --block &
    until [ -e /tmp/raylab-$SLURM_JOB_ID-node1/ray/ray_current_cluster ]; do sleep 0.2; kill -0 $! || exit 9; done
    python -m raylab.doctor --json --seconds 1
    code=$?
    kill %1
    exit $code
    """)
    log = slurm.shared / "by-hand.log"
    options = f"--nodes=2 --nodelist=node1,node2 --gpus-per-node=1 --cpus-per-task=2 --time=60 --output={log}"
    done = slurm.run(f"sbatch --wait {options} {script}", timeout=240, check=False)
    assert done.code == 1, log.read_text()
    found = rows(log.read_text())
    assert "not on node2 of job" in found["Ray"]["detail"]
    assert found["node1: Ray's GPUs"]["detail"] == "Ray has 0, SLURM gave 1"
    assert "raylab.sbatch" in found["node1: Ray's GPUs"]["remedy"]
