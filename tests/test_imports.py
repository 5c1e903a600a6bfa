from __future__ import annotations

import subprocess
import sys

CODE = """
import sys, time
started = time.perf_counter()
import spared_fm
seconds = time.perf_counter() - started
heavy = [name for name in ("torch", "anndata", "zarr", "faiss", "dask", "numpy") if name in sys.modules]
print(seconds, ",".join(heavy))
"""


def test_import_is_light():
    best = float("inf")
    for _ in range(3):  # the first may read the disk
        seconds, heavy = (
            subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
            .stdout.rstrip("\n")
            .split(" ")
        )
        assert heavy == ""
        best = min(best, float(seconds))
    assert best < 0.5


def test_help_does_not_import_torch():
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom spared_fm.cli import app\n"
        "result = CliRunner().invoke(app, ['encode', '--help'])\n"
        "assert result.exit_code == 0 and 'torch' not in sys.modules and 'anndata' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
