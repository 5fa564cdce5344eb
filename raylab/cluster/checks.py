"""What one machine must have for training: checks that need no cluster, one row each."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from pwd import getpwuid
from typing import Literal

from raylab.cluster.slurm import Allocation
from raylab.errors import RaylabError

GIB = 2**30
ROOMS = ("raylab.tasks.action", "raylab.tasks.distillation", "raylab.sweeps.sweep", "raylab.training.loop")
"""Importing these imports every package that training uses."""
RAY_PORTS = {6379: "Ray's head", 8265: "its dashboard", 10001: "its client server"}
DRIVER = Path("/proc/driver/nvidia")
FRAMES = 8  # of the video that decoders are tried on; frame n is grey, of brightness 16 + 24 n
REINSTALL = "install again: pip install --force-reinstall -c constraints.txt raylab"


@dataclass(frozen=True)
class Row:
    """What a check found.

    Attributes:
        what: was checked.
        state: of it; `failure`: training would fail.
        detail: what there is.
        remedy: what to do about it; empty where all is well.
    """

    what: str
    state: Literal["ok", "warning", "failure"]
    detail: str
    remedy: str = ""


@dataclass(frozen=True)
class Site:
    """What the checks are told.

    Attributes:
        storage: where results are to be written: a path or a URI; None: where the other verbs write.
    """

    storage: str | None = None


Check = Callable[[Site], Row]


def examine(checks: dict[str, Check], site: Site) -> Iterator[Row]:
    """The rows of the checks, each as it is found; a check that itself fails is a failure."""
    for what, check in checks.items():
        try:
            yield check(site)
        except RaylabError as error:
            yield Row(what, "failure", str(error), "as it says")
        except Exception as error:  # a broken installation raises anything at all
            yield Row(what, "failure", said(error), REINSTALL)


def said(error: BaseException) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def python(site: Site) -> Row:
    """The interpreter is one that raylab supports."""
    version = ".".join(map(str, sys.version_info[:3]))
    detail = f"{version}, {sys.executable}"
    try:
        wanted = metadata.metadata("raylab")["Requires-Python"]
    except metadata.PackageNotFoundError:
        return Row("Python", "failure", f"{detail}: raylab is not installed", "pip install -c constraints.txt -e .")
    from packaging.specifiers import SpecifierSet

    if version in SpecifierSet(wanted):
        return Row("Python", "ok", detail)
    return Row("Python", "failure", f"{detail}: raylab needs {wanted}", "load a newer Python and make the venv with it")


def packages(site: Site) -> Row:
    """Every package that raylab requires is there, in a version that it takes."""
    from packaging.requirements import Requirement

    required = [Requirement(text) for text in metadata.requires("raylab") or ()]
    wanted = [item for item in required if item.marker is None or item.marker.evaluate({"extra": ""})]
    wrong, found = [], {}
    for item in wanted:
        try:
            package = metadata.distribution(item.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{item.name} is missing")
            continue
        found[item.name] = package.version
        if not item.specifier.contains(package.version, prereleases=True):
            where = package.locate_file("")
            wrong.append(f"{item.name} {package.version} in {where} is not {item.specifier}")
    if wrong:
        remedy = "pip install -c constraints.txt -e . in the venv; unset PYTHONPATH if it leads elsewhere"
        return Row("packages", "failure", "; ".join(wrong), remedy)
    main = ", ".join(f"{name} {found[name]}" for name in ("ray", "torch", "torchvision", "optuna", "timm"))
    return Row("packages", "ok", f"all {len(found)}: {main}, …")


def imports(site: Site) -> Row:
    """They can be imported, and fit one another."""
    for room in ROOMS:
        try:
            import_module(room)
        except Exception as error:
            return Row("imports", "failure", f"{room}: {said(error)}", REINSTALL)
    return Row("imports", "ok", "everything that training imports")


def decoder(name: str, site: Site) -> Row:
    """One decoder reads a video, and the right frames of it."""
    what, package = f"decoder {name}", {"pyav": "av"}.get(name, name)
    needed = name == "pyav"  # the others are used where data.decoder asks for them
    try:
        version = metadata.version(package)
    except metadata.PackageNotFoundError:
        if needed:
            return Row(what, "failure", f"{package} is not installed", f"pip install {package}")
        return Row(what, "ok", "not installed; only data.decoder needs it")
    try:
        with tempfile.TemporaryDirectory() as folder:
            grey = _decoded_greys(Path(folder) / "grey.mp4", name)
    except Exception as error:
        if needed:
            return Row(
                what, "failure", f"{package} {version}: {said(error)}", f"pip install --force-reinstall {package}"
            )
        remedy = "module load FFmpeg" if name == "torchcodec" else f"pip install --force-reinstall {package}"
        return Row(what, "warning", f"{package} {version}: {said(error)}", f"{remedy}; or keep data.decoder=pyav")
    if any(abs(seen - 16 - 24 * number) > 8 for number, seen in enumerate(grey)):
        return Row(what, "failure", f"{package} {version} returns wrong frames: {grey}", "use another data.decoder")
    return Row(what, "ok", f"{package} {version}")


def _decoded_greys(path: Path, name: str) -> list[float]:
    import av
    import numpy as np

    from raylab.data.video import read_frames

    with av.open(str(path), "w") as container:
        stream = container.add_stream("h264", rate=25)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for number in range(FRAMES):
            picture = np.full((64, 64, 3), 16 + 24 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    frames = read_frames(path, [number / 25 for number in range(FRAMES)], name)
    return [round(float(frame.float().mean()), 1) for frame in frames]


def jpeg(site: Site) -> Row:
    """What a clip store's frames are written and read with."""
    import numpy as np
    import simplejpeg

    picture = np.full((64, 64, 3), 100, np.uint8)
    back = simplejpeg.decode_jpeg(simplejpeg.encode_jpeg(picture))
    if abs(float(back.mean()) - 100) > 2:
        return Row("JPEG", "failure", f"simplejpeg {metadata.version('simplejpeg')} returns wrong pixels", REINSTALL)
    return Row("JPEG", "ok", f"simplejpeg {metadata.version('simplejpeg')}")


def gpus(site: Site) -> Row:
    """PyTorch can compute on as many GPUs as SLURM gave, or as the machine has."""
    import torch

    allocation, promised = Allocation.current(), promised_gpus()
    seen = torch.cuda.device_count()
    if not promised and not seen:
        return Row("GPUs", "ok", "none here: training would run on CPUs")
    giver = f"SLURM gave {promised}" if allocation else f"the machine has {promised}"
    if seen < promised:
        if not DRIVER.exists():
            reason, remedy = "the node has no NVIDIA driver", "tell the cluster's support, or use another partition"
        elif torch.version.cuda is None:
            reason, remedy = "this PyTorch is built for CPUs", "pip install --force-reinstall torch torchvision"
        else:
            reason = f"CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', '')}"
            remedy = "leave CUDA_VISIBLE_DEVICES as SLURM sets it; else the driver may be too old for this PyTorch"
        return Row("GPUs", "failure", f"{giver}, PyTorch sees {seen}: {reason}", remedy)
    names = []
    for device in range(seen):
        about = torch.cuda.get_device_properties(device)
        names.append(f"{about.name} ({about.total_memory / GIB:.0f} GiB)")
        try:
            torch.ones(2, device=device).sum().item()
        except RuntimeError as error:
            known = ", ".join(torch.cuda.get_arch_list())
            remedy = f"this PyTorch computes on {known}: use another partition, or another PyTorch"
            return Row("GPUs", "failure", f"{about.name}, sm_{about.major}{about.minor}: {said(error)}", remedy)
    nccl = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    kinds = ", ".join(f"{names.count(name)} × {name}" for name in dict.fromkeys(names))
    return Row("GPUs", "ok", f"{kinds}; driver {_driver()}, CUDA {torch.version.cuda}, NCCL {nccl}")


def promised_gpus() -> int:
    """How many SLURM gave this job on this node; outside a job, how many the machine has."""
    if allocation := Allocation.current():
        return allocation.gpus
    return len(list((DRIVER / "gpus").iterdir())) if DRIVER.exists() else 0


def _driver() -> str:
    words = (DRIVER / "version").read_text().split() if DRIVER.exists() else []
    return next((word for word in words if word.count(".") >= 1 and word[0].isdigit()), "unknown")


def scratch(site: Site) -> Row:
    """Results can be written, and there is room for them."""
    from raylab.results import DEFAULT_STORAGE
    from raylab.storage import Folder

    folder = Folder.open(site.storage or DEFAULT_STORAGE)
    if folder.local is None:
        folder.check_writable()
        return Row("results", "ok", f"{folder} can be written")
    remedy = "name a folder on scratch that you may write: --storage $VSC_SCRATCH/results"
    return room("results", nearest(folder.local), failing=GIB, warning=20 * GIB, remedy=remedy)


def temporary(site: Site) -> Row:
    """The folder of Ray's logs, sockets and what it spills: on the node, with room, with a short path."""
    from raylab.cluster.node import temp_path
    from raylab.data.store.stage import SHARED, _kind

    folder = temp_path().parent
    row = room("temporary", folder, failing=GIB // 4, warning=5 * GIB, remedy="delete what is old there")
    if row.state != "ok":
        return row
    if _kind(folder).startswith(SHARED):
        return Row(
            "temporary", "warning", f"{folder} is on shared storage: slow", "ask the cluster's support for a disk"
        )
    disk = shutil.disk_usage(folder)
    if disk.free < 0.05 * disk.total:  # RAY_local_fs_capacity_threshold
        return Row(
            "temporary", "warning", f"{row.detail}; Ray writes nothing to a disk 95 % full", "delete what is old"
        )
    return row


def shared_memory(site: Site) -> Row:
    """Ray's object store and the batches of loader processes live in /dev/shm."""
    remedy = "ask for more memory (--mem), or tell the cluster's support that /dev/shm is small"
    return room("/dev/shm", Path("/dev/shm"), failing=GIB // 16, warning=2 * GIB, remedy=remedy)  # noqa: S108


def room(what: str, folder: Path, failing: int, warning: int, remedy: str) -> Row:
    """A folder can be written and has bytes left."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
    except OSError as error:
        return Row(what, "failure", f"{folder} cannot be written: {error.strerror}", remedy)
    detail = f"{folder}: {free / GIB:,.1f} GiB free"
    if free >= warning:
        return Row(what, "ok", detail)
    return Row(what, "failure" if free < failing else "warning", detail, f"delete what is old, or {remedy}")


def nearest(path: Path) -> Path:
    """The path, or the closest folder above it that exists."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def limits(site: Site) -> Row:
    """Ray needs a file for each connection and a thread for each worker; it raises soft limits to the hard ones."""
    kinds = {"open files (ulimit -n)": resource.RLIMIT_NOFILE, "processes (ulimit -u)": resource.RLIMIT_NPROC}
    hard = {name: resource.getrlimit(kind)[1] for name, kind in kinds.items()}
    found = ", ".join(f"{'any number' if n == resource.RLIM_INFINITY else n} {name}" for name, n in hard.items())
    if any(number != resource.RLIM_INFINITY and number < 4096 for number in hard.values()):
        return Row("limits", "warning", found, "raise them in the job script: ulimit -n 65536; else ask the support")
    return Row("limits", "ok", found)


def ports(site: Site) -> Row:
    """There are free ports, this host's own address answers, and Ray's default ports are nobody else's."""
    host = socket.gethostname()
    try:
        with socket.create_server(("", 0)) as server:
            socket.create_connection((host, server.getsockname()[1]), timeout=5).close()
    except OSError as error:
        remedy = "tell the cluster's support: the host's name must lead to the host itself"
        return Row("ports", "failure", f"{host} does not reach itself: {said(error)}", remedy)
    owners = {port: user for port in RAY_PORTS if (user := _listener(port)) not in (None, os.getuid())}
    if owners:
        taken = ", ".join(f"{port} ({RAY_PORTS[port]}) by {_user(owners[port])}" for port in owners)
        remedy = "raylab chooses other ports; with `ray start` by hand give --port, and never address='auto'"
        return Row("ports", "warning", f"taken: {taken}", remedy)
    return Row("ports", "ok", f"{host} reaches itself; nobody else has Ray's default ports")


def _listener(port: int) -> int | None:
    """The user id of who listens on a port; None where nobody does."""
    for table in ("tcp", "tcp6"):
        path = Path("/proc/net", table)
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            _, local, _, state, *rest = line.split()
            if state == "0A" and int(local.rpartition(":")[2], 16) == port:
                return int(rest[3])
    return None


def _user(uid: int | None) -> str:
    try:
        return getpwuid(uid or 0).pw_name
    except KeyError:
        return str(uid)


def token(site: Site) -> Row:
    """Ray's servers ask for a token that only this user can read."""
    from raylab.cluster.node import token_path

    mode = os.environ.get("RAY_AUTH_MODE", "token")
    if mode != "token":
        return Row("token", "failure", f"RAY_AUTH_MODE = {mode}: anybody may run code as you", "unset RAY_AUTH_MODE")
    path = token_path()
    if not path.exists():
        return Row("token", "ok", f"{path} is made with the first cluster")
    status = path.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        detail = f"{path} is {stat.filemode(status.st_mode)}, {_user(status.st_uid)}'s: others may run code as you"
        return Row("token", "failure", detail, f"rm {path}; stop your clusters: the next one makes a new token")
    return Row("token", "ok", f"{path}, readable by you alone")


def proxies(site: Site) -> Row:
    """Ray's connections between nodes must not go through a proxy."""
    names = [name for name in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy") if os.environ.get(name)]
    if not names:
        return Row("proxies", "ok", "none set")
    detail = f"{', '.join(names)} set: Ray's connections between nodes would go there"
    return Row("proxies", "warning", detail, f"unset {' '.join(names)}")


def job(site: Site) -> Row:
    """The SLURM job this runs in, and how long it still runs."""
    allocation = Allocation.current()
    if allocation is None:
        there = shutil.which("sbatch")
        return Row("SLURM", "ok", f"not in a job ({there})" if there else "not on a SLURM cluster")
    detail = f"job {allocation.job} on {', '.join(allocation.nodes)}"
    if allocation.gpus or allocation.cpus:
        detail += f", {allocation.cpus} CPUs and {allocation.gpus} GPUs on each"
    left = allocation.time_left
    if left is None:
        return Row("SLURM", "ok", f"{detail}, without a time limit")
    until = time.strftime("%H:%M", time.localtime(time.time() + left))
    detail += f", {left / 60:,.0f} minutes left (until {until})"
    if left < 600:
        return Row("SLURM", "warning", detail, "ask for more: --time=12:00:00; training resumes in the next job")
    return Row("SLURM", "ok", detail)


ONCE: dict[str, Check] = {"SLURM": job, "results": scratch}
"""What is the same on all nodes of a cluster."""
EACH: dict[str, Check] = {
    "Python": python,
    "packages": packages,
    "imports": imports,
    **{f"decoder {name}": partial(decoder, name) for name in ("pyav", "decord", "torchcodec")},
    "JPEG": jpeg,
    "GPUs": gpus,
    "temporary": temporary,
    "/dev/shm": shared_memory,  # noqa: S108
    "limits": limits,
    "ports": ports,
    "token": token,
    "proxies": proxies,
}
