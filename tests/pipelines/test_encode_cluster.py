from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spared_fm.errors import InputError
from spared_fm.study.api import Study
from tests.pipelines.conftest import PIPELINES

SLIDE, KEY = "synthetic_p1_s1", "stain-bank"
LOCAL = '[cluster]\nkind = "local"\nmax_workers = 2\ncores = 1\nmemory = "4GB"\n'
ENCODE = '[encode]\nstore = "S"\nencoders = "stain-bank"\n'
SLURM = LOCAL.replace("local", "slurm")
KUBERNETES = LOCAL.replace("local", "kubernetes") + '[kubernetes]\nimage = "i:1"\n'


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "cluster.toml"
        path.write_text(text)
        return path

    return write


def rendered(name: str, *more: str) -> str:
    command = [sys.executable, "-W", "error", str(PIPELINES / "encode_cluster.py"), "--config", str(PIPELINES / name)]
    return subprocess.run([*command, "--print-job-script", *more], capture_output=True, text=True, check=True).stdout


def test_the_slurm_job_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("dask_jobqueue")
    monkeypatch.chdir(tmp_path)
    lines = rendered("slurm.toml").strip().splitlines()
    directives = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")}
    assert directives == {
        "-J spared-fm",
        "-e slurm-logs/spared-fm-%J.err",
        "-o slurm-logs/spared-fm-%J.out",
        "-p gpu",
        "-n 1",
        "--cpus-per-task=8",
        "--mem=30G",
        "-t 04:00:00",
        "--gres=gpu:1",
    }
    exports = dict(line.removeprefix("export ").split("=") for line in lines if line.startswith("export"))
    assert exports == {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "SPARED_FM_CORES": "8",
        "HF_HUB_OFFLINE": "1",
    }
    worker = lines[-1]
    assert f"{sys.executable} -m distributed.cli.dask_worker SCHEDULER-ADDRESS " in worker
    for option in (
        "--nthreads 2",
        "--memory-limit 29.80GiB",
        "--resources GPU=1",
        "--lifetime 225m",
        "--lifetime-stagger 10m",
        "--interface ib0",
        "--protocol tls://",
        "--tls-ca-file ",
        "--tls-cert ",
        "--tls-key ",
    ):
        assert f" {option}" in worker
    assert list(tmp_path.iterdir()) == []  # a look leaves nothing behind


def test_slurm_without_gpu_and_keys(written: Callable[[str], Path]):
    pytest.importorskip("dask_jobqueue")
    from cluster_config import load
    from encode_cluster import job_script

    text = SLURM + 'host = "10.0.0.1"\ntls = false\n[slurm]\nprologue = ["module load x"]\ndirectives = ["--qos=low"]\n'
    script = job_script(load(written(text + ENCODE)))
    for absent in ("gres", "GPU", "tls", "--interface", "--lifetime", "#SBATCH -p", "#SBATCH -A"):
        assert absent not in script
    assert "#SBATCH --qos=low\n" in script
    assert "export OMP_NUM_THREADS=1\n" in script
    assert script.index("module load x") < script.index("dask_worker")


def test_the_kubernetes_resource():
    pytest.importorskip("dask_kubernetes")
    import yaml

    spec = yaml.safe_load(rendered("kubernetes.toml"))
    assert (spec["kind"], spec["metadata"]) == ("DaskCluster", {"name": "spared-fm", "namespace": "default"})
    pod = spec["spec"]["worker"]["spec"]
    [worker], [scheduler] = pod["containers"], spec["spec"]["scheduler"]["spec"]["containers"]
    # `dask-worker` and `dask-scheduler`, the operator's defaults, are no longer installed by distributed
    assert worker["args"][:6] == ["dask", "worker", "--nthreads", "2", "--resources", "GPU=1"]
    assert scheduler["args"] == ["dask", "scheduler", "--host", "0.0.0.0"]
    assert worker["image"] == scheduler["image"] == "registry.example.org/spared-fm:0.1.0"
    assert worker["resources"]["limits"] == {"cpu": "4", "memory": "16000000000", "nvidia.com/gpu": "1"}
    assert "nvidia.com/gpu" not in scheduler["resources"]["limits"]
    environment = {item["name"]: item["value"] for item in scheduler["env"]}
    assert environment["DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES"] == "20"
    assert {item["name"]: item["value"] for item in worker["env"]}["SPARED_FM_CORES"] == "4"
    assert worker["volumeMounts"] == [{"name": "data0", "mountPath": "/data", "readOnly": False}]
    assert pod["volumes"] == [{"name": "data0", "persistentVolumeClaim": {"claimName": "cohort"}}]
    assert not any(spec["spec"][part]["spec"]["automountServiceAccountToken"] for part in ("worker", "scheduler"))
    assert spec["spec"]["scheduler"]["service"]["type"] == "ClusterIP"  # not reachable from outside


def test_the_kubernetes_cluster_is_asked_for_with_that_resource(
    written: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
):
    operator = pytest.importorskip("dask_kubernetes.operator")
    from encode_cluster import _open, kubernetes_spec, load

    asked = {}
    signature = inspect.signature(operator.KubeCluster)
    monkeypatch.setattr(operator, "KubeCluster", lambda **given: asked.update(signature.bind(**given).arguments))
    config = load(written(KUBERNETES + 'namespace = "n"\n' + ENCODE))
    _open(config, None)
    assert asked == {"custom_cluster_spec": kubernetes_spec(config), "namespace": "n", "quiet": True}


def test_the_commands_of_the_pods_are_there():
    """What the pods start exists in the distributed that is installed, with the options that are passed."""
    for program, options in (
        ("worker", ["--nthreads", "--resources", "--lifetime-stagger"]),
        ("scheduler", ["--host"]),
    ):
        command = [str(Path(sys.executable).with_name("dask")), program, "--help"]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert all(option in shown for option in options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[cluster", "cluster.toml: not TOML: "),
        ("cluster = 3", r"cluster is not one of the tables \[cluster\], \[slurm\]"),
        (LOCAL + ENCODE + "[slrum]\n", "slrum is not one of the tables"),
        (ENCODE, r"\[cluster\] needs kind \(slurm, kubernetes or local\)"),
        (LOCAL.replace("local", "pbs") + ENCODE, r"\[cluster\] kind = 'pbs' is not slurm, kubernetes or local"),
        (LOCAL.replace("= 2", '= "2"') + ENCODE, r"\[cluster\] max_workers = '2' is not a whole number ≥ 1"),
        (LOCAL.replace("= 2", "= true") + ENCODE, r"\[cluster\] max_workers = True is not a whole number"),
        (LOCAL.replace("cores = 1", "") + ENCODE, r"\[cluster\] needs cores"),
        (LOCAL.replace("4GB", "much") + ENCODE, r"\[cluster\] memory = 'much' is not a size per worker"),
        (LOCAL + "min_workers = 3\n" + ENCODE, "min_workers is more than max_workers"),
        (LOCAL + "gpus = 1\n" + ENCODE, r"\[cluster\] has no key 'gpus'; it has kind, "),
        (LOCAL + "gpu = true\n" + ENCODE, "max_workers = 1"),
        (LOCAL + 'lifetime = "soon"\n' + ENCODE, r"lifetime = 'soon' is not a duration"),
        (LOCAL + 'host = "a"\ninterface = "b"\n' + ENCODE, "host or interface, not both"),
        (LOCAL + '[encode]\nencoders = "e"\n', r"\[encode\] needs store"),
        (LOCAL + ENCODE + "batch_size = 0\n", r"\[encode\] batch_size = 0 is not a whole number ≥ 1"),
        (SLURM + ENCODE, r"\[cluster\] needs host or interface"),
        (SLURM + 'host = "h"\n[slurm]\nwalltime = "4h"\n' + ENCODE, r"\[slurm\] walltime = '4h' is not \"HH:MM:SS\""),
        (
            SLURM + 'host = "h"\nlifetime = "1h"\n[slurm]\nwalltime = "01:00:00"\n' + ENCODE,
            r"lifetime \+ lifetime_stagger must be under \[slurm\] walltime",
        ),
        (LOCAL.replace("local", "kubernetes") + ENCODE, r"\[kubernetes\] needs image"),
        (
            KUBERNETES + 'volumes = [{ claim = "c" }]\n' + ENCODE,
            r"\[kubernetes\] volumes = .* is not a list of \{claim",
        ),
        (KUBERNETES.replace("[kub", "tls = true\n[kub") + ENCODE, "tls, host and interface go with slurm and local"),
    ],
)
def test_bad_configs(written: Callable[[str], Path], text: str, message: str):
    from cluster_config import load

    with pytest.raises(InputError, match=message) as caught:
        load(written(text))
    assert "cluster.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bad_config_is_one_line_and_exit_code_1(
    written: Callable[[str], Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    from encode_cluster import main

    assert main(["--config", str(written(LOCAL + "gpus = 1\n"))]) == 1
    assert main(["--config", str(tmp_path / "absent.toml")]) == 1
    assert main(["--config", str(written(LOCAL + ENCODE)), "--store", str(tmp_path / "no-store")]) == 1
    out, err = capsys.readouterr()
    first, second, third = err.strip().splitlines()
    assert out == ""
    assert re.match(r"error: \S+cluster.toml: \[cluster\] has no key 'gpus'", first)
    assert re.match(r"error: \S+absent.toml: No such file", second)
    assert "no-store" in third


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [("slurm", "dask_jobqueue.slurm", "slurm"), ("kubernetes", "dask_kubernetes.operator", "kubernetes")],
)
def test_an_extra_that_is_not_installed(
    name: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from encode_cluster import main

    monkeypatch.setitem(sys.modules, module, None)
    assert main(["--config", str(PIPELINES / f"{name}.toml"), "--print-job-script"]) == 1
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: {PIPELINES / name}.toml: ")
    assert line.endswith(f"pip install 'spared-fm[{extra}]'")


def test_the_command_line_wins_over_the_file(written: Callable[[str], Path]):
    from cluster_config import load

    config = load(written(LOCAL + ENCODE), {"store": "T", "encoders": ["a", "b"]})
    assert (config["encode"]["store"], config["encode"]["encoders"]) == ("T", ["a", "b"])
    assert config["cluster"]["host"] == "127.0.0.1"


def test_no_sbatch(written: Callable[[str], Path], make_study: Callable[[str], Study], monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("dask_jobqueue")
    from encode_cluster import load, start

    monkeypatch.setenv("PATH", "")
    config = load(written(SLURM + 'host = "127.0.0.1"\ntls = false\n' + ENCODE))
    with pytest.raises(InputError, match="sbatch is not on this machine"), start(config):
        pass


def chunks(study: Study) -> dict[str, bytes]:
    folder = Path(study.layout.root) / study.layout.embedding(SLIDE, KEY) / "c"
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def run_local(text: str, study: Study, written: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> Any:
    from encode_cluster import main

    path = written(text + "[encode]\nchunk_rows = 8\nbatch_size = 4\n")
    code = main(["--config", str(path), "--store", str(study.layout.root), "--encoder", KEY])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out)


def test_local_processes_give_the_bytes_of_this_process(
    written: Callable[[str], Path], make_study: Callable[[str], Study], capsys: pytest.CaptureFixture[str]
):
    study, alone = make_study("store"), make_study("alone")
    row = run_local(LOCAL, study, written, capsys)
    alone.encode(KEY, chunk_rows=8, batch_size=4, threads=1)
    assert row["patches"] == study.slide(SLIDE).n_obs
    assert chunks(study) == chunks(alone)


@pytest.mark.full
def test_keys_and_gpu_resources(
    written: Callable[[str], Path],
    make_study: Callable[[str], Study],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    """A worker that offers the resource gets the tasks that ask for it, over TLS; there need be no GPU for that."""
    pytest.importorskip("cryptography")
    import dask
    from distributed import Client

    study, alone = make_study("store"), make_study("alone")
    seen = {}
    encode = Study.encode

    def look(self: Study, encoders: Any, **options: Any) -> Any:
        seen["resources"] = dask.get_annotations()["resources"]
        with Client(options["scheduler"]) as client:
            seen["offered"] = [worker["resources"] for worker in client.scheduler_info()["workers"].values()]
            # no worker has two: the request is not ignored
            with dask.annotate(resources={"GPU": 2}), pytest.raises(TimeoutError):
                client.submit(int, pure=False).result(timeout="1s")
        seen["address"] = options["scheduler"]
        return encode(self, encoders, **{**options, "device": "cpu"})

    monkeypatch.setattr(Study, "encode", look)
    text = LOCAL.replace("max_workers = 2", "max_workers = 1") + "gpu = true\ntls = true\n"
    run_local(text, study, written, capsys)
    assert seen["resources"] == {"GPU": 0.5}  # two chunks in hand
    assert seen["offered"] == [{"GPU": 1}]
    assert seen["address"].startswith("tls://127.0.0.1:")
    encode(alone, KEY, chunk_rows=8, batch_size=4, threads=1)
    assert chunks(study) == chunks(alone)
