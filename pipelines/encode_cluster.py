"""Encode a cohort's slides on a dask cluster: SLURM, Kubernetes, or processes of this machine.

    python pipelines/encode_cluster.py --config pipelines/slurm.toml --store S --encoder timm:vit_small_patch16_224
    python pipelines/encode_cluster.py --config pipelines/slurm.toml --print-job-script

It starts the cluster the TOML file describes, hands its address to the same ``encode`` call that runs on a laptop, and
closes the cluster. Ingest before it, cohorts and benchmarks after it need no cluster: they are the same verbs as ever.
Killed, out of wall time or short of workers, the same command goes on where it stopped: finished chunks stay.

Needs ``pip install 'spared-fm[slurm]'`` or ``'spared-fm[kubernetes]'``. Workers must see the store and the images under
the same paths as this process. One job or pod is one worker process; it fills its ``cores`` by itself, so dask gives it
two chunks at a time (the second hides the end of the first) and thread pools stay small.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster_config import Config, load

import spared_fm
from spared_fm.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

PLACEHOLDER = "SCHEDULER-ADDRESS"
CHUNKS_IN_HAND = 2


def _worker_arguments(cluster: dict[str, Any]) -> list[str]:
    arguments = ["--no-dashboard"]
    if cluster["gpu"]:
        arguments += ["--resources", "GPU=1"]
    if cluster["lifetime"]:
        arguments += ["--lifetime", cluster["lifetime"], "--lifetime-stagger", cluster["lifetime_stagger"]]
    return arguments


def slurm_options(config: Config) -> dict[str, Any]:
    """Keywords of ``dask_jobqueue.SLURMCluster`` that describe one job (one worker)."""
    cluster, slurm = config["cluster"], config["slurm"]
    exports = [f"export {name}={shlex.quote(value)}" for name, value in cluster["environment"].items()]
    return {
        "cores": CHUNKS_IN_HAND,  # for dask's threads; job_cpu is what SLURM is asked for
        "processes": 1,
        "job_cpu": cluster["cores"],
        "memory": cluster["memory"],
        "queue": slurm["partition"],
        "account": slurm["account"],
        "walltime": slurm["walltime"],
        "job_name": "spared-fm",
        "job_extra_directives": [*([f"--gres={slurm['gres']}"] if cluster["gpu"] else []), *slurm["directives"]],
        "job_script_prologue": [*slurm["prologue"], *exports],
        "worker_extra_args": _worker_arguments(cluster),
        "python": slurm["python"],
        "log_directory": slurm["log_directory"],
        "local_directory": slurm["scratch"],
        "interface": cluster["interface"],
    }


def kubernetes_spec(config: Config) -> dict[str, Any]:
    """``DaskCluster`` resource for the dask operator."""
    from dask.utils import parse_bytes
    from dask_kubernetes.operator import make_cluster_spec

    cluster, kubernetes = config["cluster"], config["kubernetes"]
    # The operator's own default commands are gone from distributed 2026.
    command = ["dask", "worker", "--nthreads", str(CHUNKS_IN_HAND), *_worker_arguments(cluster)]
    command.remove("--no-dashboard")  # the operator adds --dashboard and watches its port
    spec = make_cluster_spec(
        name=kubernetes["name"],
        image=kubernetes["image"],
        n_workers=cluster["min_workers"],
        env={
            **cluster["environment"],
            "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": str(cluster["allowed_failures"]),
        },
        worker_command=command,
    )
    spec["metadata"]["namespace"] = kubernetes["namespace"]
    [scheduler], [worker] = (spec["spec"][part]["spec"]["containers"] for part in ("scheduler", "worker"))
    scheduler["args"] = ["dask", "scheduler", "--host", "0.0.0.0"]  # noqa: S104  the pod's own address
    for container, cores, memory in (
        (scheduler, kubernetes["scheduler_cores"], kubernetes["scheduler_memory"]),
        (worker, cluster["cores"], cluster["memory"]),
    ):
        amount = {"cpu": str(cores), "memory": str(parse_bytes(memory))}
        container["resources"] = {"requests": amount, "limits": dict(amount)}
    if cluster["gpu"]:
        worker["resources"]["limits"]["nvidia.com/gpu"] = "1"
    pod = spec["spec"]["worker"]["spec"]
    worker["volumeMounts"] = [
        {"name": f"data{i}", "mountPath": volume["path"], "readOnly": volume.get("read_only", False)}
        for i, volume in enumerate(kubernetes["volumes"])
    ]
    pod["volumes"] = [
        {"name": f"data{i}", "persistentVolumeClaim": {"claimName": volume["claim"]}}
        for i, volume in enumerate(kubernetes["volumes"])
    ]
    pod["nodeSelector"] = kubernetes["node_selector"]
    for part in ("scheduler", "worker"):
        spec["spec"][part]["spec"]["automountServiceAccountToken"] = False
    return spec


def job_script(config: Config) -> str:
    """Render what would be submitted: SLURM job script, Kubernetes resource, or the local cluster's settings."""
    kind = config["cluster"]["kind"]
    if kind == "slurm":
        from dask_jobqueue.slurm import SLURMJob
        from distributed import Security

        tls = {}
        if config["cluster"]["tls"]:
            keys = Security(tls_ca_file="CA-FILE", tls_worker_cert="CERTIFICATE", tls_worker_key="KEY-FILE")
            tls = {"protocol": "tls://", "security": keys}
        with tempfile.TemporaryDirectory() as folder:  # the class makes the log folder: not for a look
            options = slurm_options(config)
            script = SLURMJob(
                PLACEHOLDER, name="WORKER-NAME", **{**options, "log_directory": folder}, **tls
            ).job_script()
            return script.replace(folder, options["log_directory"])
    if kind == "kubernetes":
        import yaml

        return yaml.safe_dump(kubernetes_spec(config), sort_keys=False)
    return json.dumps(config["cluster"], indent=2)


@contextlib.contextmanager
def start(config: Config) -> Iterator[Any]:
    """Start the cluster, wait for its first worker, close it in the end; yields the dask cluster object."""
    import dask
    from distributed import Client, Security

    cluster = config["cluster"]
    security = Security.temporary() if cluster["tls"] else None
    settings: dict[str, Any] = {"distributed.scheduler.allowed-failures": cluster["allowed_failures"]}
    if cluster["kind"] == "local":
        settings["distributed.nanny.pre-spawn-environ"] = cluster["environment"]
    if security is not None:  # a client that is given an address alone finds the keys here
        settings |= {
            "distributed.comm.require-encryption": True,
            "distributed.comm.tls.ca-file": security.tls_ca_file,
            "distributed.comm.tls.client.cert": security.tls_client_cert,
            "distributed.comm.tls.client.key": security.tls_client_key,
        }
    with dask.config.set(settings), _open(config, security) as running:
        running.adapt(minimum=cluster["min_workers"], maximum=cluster["max_workers"])
        with Client(running.scheduler_address) as client:
            try:
                client.wait_for_workers(1, timeout=cluster["first_worker"])
            except TimeoutError as error:
                raise InputError(
                    f"no worker came up within {cluster['first_worker']} ([cluster] first_worker); look at the queue and the "
                    f"workers' logs ({config.get('slurm', {}).get('log_directory', 'of the pods')})"
                ) from error
        yield running


def _open(config: Config, security: Any) -> Any:
    cluster = config["cluster"]
    if cluster["kind"] == "kubernetes":
        from dask_kubernetes.operator import KubeCluster

        return KubeCluster(
            custom_cluster_spec=kubernetes_spec(config), namespace=config["kubernetes"]["namespace"], quiet=True
        )
    listen = {"interface": cluster["interface"]} if cluster["interface"] else {"host": cluster["host"]}
    if cluster["kind"] == "slurm":
        from dask_jobqueue import SLURMCluster

        _try(job_script(config))
        return SLURMCluster(
            **slurm_options(config),
            scheduler_options={**listen, "dashboard_address": "127.0.0.1:0"},
            security=security,
            shared_temp_directory=_key_directory(config) if security is not None else None,
        )
    from distributed import LocalCluster

    return LocalCluster(
        n_workers=cluster["min_workers"],
        threads_per_worker=CHUNKS_IN_HAND,
        processes=True,
        memory_limit=cluster["memory"],
        dashboard_address="127.0.0.1:0",
        worker_dashboard_address="127.0.0.1:0",
        security=security,
        resources={"GPU": 1} if cluster["gpu"] else None,
        lifetime=cluster["lifetime"],
        lifetime_stagger=cluster["lifetime_stagger"] if cluster["lifetime"] else 0,
        lifetime_restart=bool(cluster["lifetime"]),
        **listen,
    )


def _try(script: str) -> None:
    """Ask SLURM whether it would take the job: what it refuses later would only be a line in a log, and a long wait."""
    try:
        asked = subprocess.run(["sbatch", "--test-only"], input=script, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise InputError("sbatch is not on this machine: run this on a login node of the SLURM cluster") from error
    if asked.returncode:
        raise InputError(f"sbatch does not take the job: {asked.stderr}")


def _key_directory(config: Config) -> str:
    folder = Path(config["slurm"]["key_directory"] or "~/.spared-fm/keys").expanduser()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return str(folder)


def encode(config: Config) -> list[dict[str, Any]]:
    """Start the cluster, encode on it, close it; rows as ``encode`` gives them."""
    import dask

    options = {name: value for name, value in config["encode"].items() if value is not None}
    study = spared_fm.open(Path(options.pop("store")).resolve())
    gpu = config["cluster"]["gpu"]
    options.setdefault("device", "cuda" if gpu else "cpu")
    needs = {"resources": {"GPU": 1 / CHUNKS_IN_HAND}} if gpu else {}
    with start(config) as cluster, dask.annotate(**needs):
        return study.encode(
            options.pop("encoders"), scheduler=cluster.scheduler_address, progress=sys.stderr.isatty(), **options
        )


def main(arguments: list[str] | None = None) -> int:
    """Run the script; returns its exit code: 0 done, 1 failed with one line on standard error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="TOML file, see pipelines/*.toml")
    parser.add_argument("--print-job-script", action="store_true", help="print what would be submitted, submit nothing")
    parser.add_argument("--store", help="the store, instead of [encode] store")
    parser.add_argument("--encoder", dest="encoders", action="append", help="instead of [encode] encoders; repeatable")
    parser.add_argument(
        "--slide", dest="slides", action="append", help="id or glob, instead of [encode] slides; repeatable"
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    options = vars(parser.parse_args(arguments))
    path, show, debug = options.pop("config"), options.pop("print_job_script"), options.pop("debug")
    try:
        config = load(path, {name: value for name, value in options.items() if value is not None}, only_cluster=show)
        if show:
            print(job_script(config))
            return 0
        for row in encode(config):
            print(json.dumps(row))
    except ImportError as error:
        if debug:
            raise
        extra = "kubernetes" if "kubernetes" in str(error) else "slurm"
        print(f"error: {path}: {' '.join(str(error).split())}; pip install 'spared-fm[{extra}]'", file=sys.stderr)
        return 1
    except InputError as error:
        if debug:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted; finished chunks are kept, run the same command again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
