from __future__ import annotations

import subprocess
import sys


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_timm_imports_after_the_declaration():
    code = (
        "from spared_fm.torchvision_ops import declare_missing_operators as d\n"
        "assert d() is d()\n"
        "import timm, torchvision.transforms"
    )
    result = run(code)
    assert result.returncode == 0, result.stderr


def test_nothing_is_declared_where_the_extension_loads():
    code = (
        "import spared_fm.torchvision_ops as ops\n"
        "ops._extension_loads = lambda package: True\n"
        "assert ops.declare_missing_operators() is None"
    )
    result = run(code)
    assert result.returncode == 0, result.stderr
