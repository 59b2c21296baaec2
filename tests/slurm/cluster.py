"""A throw-away SLURM of one node: its daemons, its keys and all that it writes are in one folder. Root, Debian."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

COMMANDS = ("slurmctld", "slurmd", "sbatch", "munged")
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
CPUS = 4
"""What the node claims to have: jobs of the tests share what it has."""
START_SECONDS = 60
STOP_SECONDS = 10
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/controller
SlurmdSpoolDir={folder}/node
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1,batch_sched_delay=0
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobRequeue=1
KillWait=5
MinJobAge=300
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=2000 State=UNKNOWN
PartitionName=cpu Nodes={host} Default=YES MaxTime=60 State=UP
"""
# Without accounting, as here, submitit's own waiting never ends for a job that was killed. And a job that is put back into the
# queue waits until its old credential has expired: `cred_expire` makes that 5 seconds instead of 120.


class NoClusterError(Exception):
    """Why there can be no SLURM here."""


@contextmanager
def cluster(folder: Path) -> Iterator[Mapping[str, str]]:
    """Inside, a SLURM runs; gives the environment in which its commands find it. Raises NoClusterError."""
    _install()
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    daemons: list[subprocess.Popen[bytes]] = []
    _write(folder)
    key = folder / "munge.key"
    key.touch(mode=0o400)
    key.write_bytes(secrets.token_bytes(1024))
    sock, files = folder / "munge.socket", [f"--{name}-file={folder}/munge.{name}" for name in ("pid", "log", "seed")]
    munged = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={sock}", "--num-threads=2", *files]
    try:
        daemons.append(_started(munged, folder, environment))
        _wait_for(sock.exists, daemons, folder)
        daemons.append(_started(["slurmctld", "-D", "-i"], folder, environment))
        daemons.append(_started(["slurmd", "-D", "-N", _host()], folder, environment))
        _wait_for(lambda: "idle" in _said(["sinfo", "-h", "-o", "%T"], environment), daemons, folder)
        yield environment
    finally:
        if len(daemons) == len(("munged", "slurmctld", "slurmd")):
            _said(["scancel", "--user=root"], environment)
            deadline = time.monotonic() + STOP_SECONDS
            while _said(["squeue", "-h"], environment) and time.monotonic() < deadline:
                time.sleep(0.2)
        for daemon in reversed(daemons):
            daemon.terminate()
            try:
                daemon.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _install() -> None:
    if os.geteuid() != 0:
        raise NoClusterError("a SLURM of one's own needs root")
    if all(shutil.which(command) for command in COMMANDS):
        return
    if shutil.which("apt-get") is None:
        raise NoClusterError(f"SLURM is not installed ({', '.join(COMMANDS)}), and there is no apt-get")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(["apt-get", *words], env=quiet, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NoClusterError(f"apt-get {words[0]}: {done.stderr.strip().splitlines()[-1:]}")


def _write(folder: Path) -> None:
    folder.chmod(0o755)
    for name in ("controller", "node"):
        (folder / name).mkdir()
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        ports = {"controller_port": first.getsockname()[1], "node_port": second.getsockname()[1]}
    (folder / "slurm.conf").write_text(CONF.format(host=_host(), folder=folder, cpus=CPUS, **ports), encoding="utf-8")


def _host() -> str:
    return socket.gethostname().partition(".")[0]


def _started(words: list[str], folder: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    with (folder / f"{words[0]}.out").open("wb") as out:
        return subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)


def _said(words: list[str], environment: Mapping[str, str]) -> str:
    try:
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=10, check=False)
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout.strip()


def _wait_for(ready: Callable[[], bool], daemons: list[subprocess.Popen[bytes]], folder: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        ended = [str(daemon.args) for daemon in daemons if daemon.poll() is not None]
        if ended or time.monotonic() > deadline:
            printed = "\n".join(file.read_text(errors="replace")[-2000:] for file in sorted(folder.glob("*.out")))
            raise RuntimeError(f"SLURM did not start ({ended or 'no answer'}):\n{printed}")
        time.sleep(0.1)
