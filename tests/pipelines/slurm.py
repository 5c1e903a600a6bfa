"""A real SLURM of one node for tests: Debian's ``slurm-wlm`` and ``munge``, everything it writes in one folder."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "sinfo", "scancel")
CPUS = 2
PATIENCE = 60.0

CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmdPort={slurmd_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SlurmdParameters=config_overrides
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} State=UNKNOWN
PartitionName=debug Nodes={host} Default=YES MaxTime=01:00:00 OverSubscribe=NO State=UP
"""


@dataclasses.dataclass
class Slurm:
    """A running SLURM: its folder, and the environment in which its commands find it."""

    folder: Path
    environment: dict[str, str]

    def call(self, *command: str) -> str:
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=True, timeout=PATIENCE
        ).stdout

    def jobs(self, state: str = "RUNNING") -> list[str]:
        return self.call("squeue", "--noheader", "--format=%i", f"--states={state}").split()


def find_programs() -> None:
    """Install what is missing where that is ours to do (root on Debian, as in a container), else skip."""
    os.environ["PATH"] += os.pathsep + "/usr/sbin"
    if all(shutil.which(program) for program in PROGRAMS):
        return
    missing = [program for program in PROGRAMS if not shutil.which(program)]
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        pytest.skip(f"SLURM is not on this machine ({', '.join(missing)} absent): apt-get install slurm-wlm munge")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "--yes", "--no-install-recommends", "slurm-wlm", "munge"]):
        try:
            subprocess.run(
                ["apt-get", *command], env=environment, capture_output=True, text=True, check=True, timeout=300
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            pytest.skip(f"SLURM can't be installed: apt-get {command[0]} failed ({error})")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def start_slurm(folder: Path) -> Iterator[Slurm]:
    """Start munged, slurmctld and slurmd, wait for an idle node, stop them in the end."""
    find_programs()
    if os.geteuid() != 0:
        pytest.skip("SLURM's daemons start as root only")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    host = socket.gethostname().split(".")[0]
    conf = folder / "slurm.conf"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20 - 256
    conf.write_text(
        CONF.format(host=host, folder=folder, cpus=CPUS, memory=memory, ctld_port=free_port(), slurmd_port=free_port())
    )
    (folder / "cgroup.conf").write_text("CgroupAutomount=no\nConstrainCores=no\nConstrainRAMSpace=no\n")
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    munged = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket"]
    munged += [f"--{what}-file={folder}/munged.{what}" for what in ("pid", "log", "seed")]
    running = Slurm(folder, {**os.environ, "SLURM_CONF": str(conf)})
    processes: list[subprocess.Popen] = []
    try:
        for command in (munged, ["slurmctld", "-D", "-f", str(conf)], ["slurmd", "-D", "-f", str(conf), "-N", host]):
            with (folder / f"{command[0]}.out").open("wb") as out:
                processes.append(subprocess.Popen(command, env=running.environment, stdout=out, stderr=out))
            time.sleep(0.5)
        reason = wait_for_idle(running, processes)
        if reason:
            pytest.skip(f"SLURM does not start here: {reason}")
        yield running
    finally:
        if len(processes) == 3 and all(process.poll() is None for process in processes):
            with contextlib.suppress(subprocess.SubprocessError):
                running.call("scancel", "--full", "--signal=KILL", "--user=root")
                running.call("scancel", "--user=root")
                time.sleep(1)
        for process in reversed(processes):
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=15)
            process.kill()
            process.wait()


def wait_for_idle(running: Slurm, processes: list[subprocess.Popen]) -> str:
    """Return an empty text when the node is idle, else what is wrong."""
    deadline = time.monotonic() + PATIENCE
    state = ""
    while time.monotonic() < deadline:
        for process in processes:
            if process.poll() is not None:
                name = str(process.args[0])  # type: ignore[index]
                lines = (running.folder / f"{name}.out").read_text(errors="replace").strip().splitlines()
                return f"{name} ended with {process.returncode}: {lines[-1] if lines else 'it said nothing'}"
        with contextlib.suppress(subprocess.SubprocessError):
            state = running.call("sinfo", "--noheader", "--format=%t").strip()
            if state == "idle":
                return ""
        time.sleep(0.5)
    return f"the node is {state or 'unknown'} after {PATIENCE:.0f} s"
