from __future__ import annotations

import subprocess
import sys

from spared_fm.study import offline as module
from spared_fm.study.offline import GUARD, STEPS, offline


def test_no_socket_is_opened_at_import_or_at_run():
    rows = offline("stain-bank")
    assert [row["step"] for row in rows] == list(STEPS)
    assert all(row["ok"] for row in rows), rows


def test_what_needs_the_network_is_told():
    rows = offline("kaiko-s16", weights="pretrained")
    assert [row["ok"] for row in rows] == [True, False]
    assert "socket.getaddrinfo ('huggingface.co'" in rows[-1]["text"]


def test_the_guard_lets_nothing_through():
    tries = {
        "socket.socket()": False,
        "socket.create_connection(('127.0.0.1', 9))": False,
        "socket.getaddrinfo('example.org', 80)": False,
        "socket.socketpair()": True,
    }
    for code, allowed in tries.items():
        guarded = GUARD.split("import runpy")[0] + f"import socket\n{code}\n"
        done = subprocess.run([sys.executable, "-c", guarded], capture_output=True, text=True)
        assert (done.returncode == 0) == allowed, (code, done.stderr)
        assert allowed or "NETWORK" in done.stderr


def test_a_failed_start_is_a_row(monkeypatch):
    monkeypatch.setattr(module, "GUARD", "raise SystemExit('no')")
    assert offline() == [{"step": STEPS[0], "ok": False, "text": "no"}]
