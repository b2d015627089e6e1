"""A worker's life: started, asked, hung, killed in the middle, orphaned, idle; and servers that must not start.

Three processes are started; about 15 s.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
# MVGLib is found by tests/server_process.py.
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server_process import (
    AFFINE,
    ENVIRONMENT,
    REPOSITORY,
    Client,
    ServerUnreachable,
    Worker,
    WorkerError,
    new_worker,
    subject,
    wait_for,
)
from tiny import write_weights
from typer.testing import CliRunner

from mvg_core.cli import app

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and process groups of POSIX")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("worker") / "tiny.pt")


@pytest.fixture
def sleeper() -> Iterator[Any]:
    """Makes workers that run a little Python program instead of a server."""
    made: list[Worker] = []

    def make(program: str, **settings: float) -> Worker:
        made.append(Worker([sys.executable, "-c", program], **settings))
        return made[-1]

    yield make
    for one in made:
        one.kill()


def is_alive(pid: int) -> bool:
    """Whether a process runs; zombies do not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_worker_hangs_recovers_and_is_killed_in_the_middle_of_a_job(weights: Path) -> None:
    worker = new_worker(weights, checkSeconds=0.05, silentSeconds=0.5)
    assert worker.poll() == "stopped"
    worker.start()
    assert worker.poll() == "starting"
    wait_for(lambda: worker.poll() != "starting")
    assert (worker.state, worker.error) == ("ready", "")
    client, pid = worker.client, worker.pid
    assert client is not None
    assert pid is not None
    # Its parent's pipe is not its standard input: on Windows, libraries that look at that would never be loaded.
    assert os.readlink(f"/proc/{pid}/fd/0") == os.devnull
    client._shortSeconds = 0.3

    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: worker.poll(0.01) == "hung")
    assert "not answered" in worker.error
    os.kill(pid, signal.SIGCONT)
    wait_for(lambda: worker.poll(0.01) == "ready")

    client = Client(client.url, client._token)
    image, label = subject(600)
    query = client.uploadVolume(image, AFFINE)
    job = client.submit({"task": "segmentation", "query": query, "plane": 2, "parts": {"stop_after": 0}, "references": [
        {"image": query, "label": client.uploadVolume(label, AFFINE), "slices": [300]}]})
    follower = client.follow(job, everySeconds=0.02)
    painted: dict[int, np.ndarray] = {}
    wait_for(lambda: painted.update(follower.poll().painted) or len(painted) > 5)
    os.kill(pid, signal.SIGKILL)

    def follower_fails() -> bool:
        try:
            painted.update(follower.poll().painted)
        except ServerUnreachable as error:
            return "start it again" in str(error)
        return False

    wait_for(follower_fails)
    assert len(painted) > 5  # nothing that was there is lost
    wait_for(lambda: worker.poll() == "dead")
    assert "exit code -9" in worker.error
    assert worker.client is None
    assert "PUT /v1/volumes" in worker.log()
    worker.restart()
    assert worker.poll() == "starting"
    worker.kill()
    assert (worker.poll(), worker.log()) == ("stopped", "")


def test_a_worker_ends_with_its_parent(weights: Path, tmp_path: Path) -> None:
    program = (f"import sys; sys.path[:0] = [{str(REPOSITORY / 'tests')!r}]\n"
               "import pathlib, time, server_process\n"
               f"worker = server_process.new_worker(pathlib.Path({str(weights)!r}))\n"
               "worker.waitUntilReady(); print(worker.pid, flush=True); time.sleep(600)")
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=ENVIRONMENT, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert is_alive(pid)
    parent.kill()
    parent.wait()
    wait_for(lambda: not is_alive(pid), 20)


def test_a_worker_without_work_ends(weights: Path) -> None:
    worker = new_worker(weights, "--idle-minutes", "0.02", checkSeconds=0.05)
    worker.waitUntilReady()
    started = time.monotonic()
    wait_for(lambda: worker.poll(0.01) == "stopped")
    assert time.monotonic() - started > 0.5
    assert (worker.error, worker.client) == ("", None)


def test_children_of_a_worker_end_with_it(sleeper: Any, tmp_path: Path) -> None:
    written = tmp_path / "child"
    worker = sleeper("import subprocess, sys, time\n"
                     "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
                     f"open({str(written)!r}, 'w').write(str(child.pid) + '\\n'); time.sleep(600)")
    worker.start()
    wait_for(lambda: written.is_file() and written.read_text().endswith("\n"))
    child = int(written.read_text())
    assert is_alive(child)
    worker.stop(0.1)
    wait_for(lambda: not is_alive(child), 10)


@pytest.mark.parametrize(("program", "reason"), [
    ("import sys; sys.stderr.write('no weights'); sys.exit(2)", r"exit code 2\)\. no weights"),
    ("print('hello'); input()", "different versions"),
    ("import json; print(json.dumps({'url': 'http://127.0.0.1:1', 'token': 'x', 'pid': 1, 'protocol': 9})); input()",
     "protocol 9, this module 1"),
    ("input()", "not ready after 1 s")])
def test_a_worker_that_does_not_get_ready_says_why(sleeper: Any, program: str, reason: str) -> None:
    worker = sleeper(program, startSeconds=1.0 if "not ready" in reason else 60.0)
    with pytest.raises(WorkerError, match=reason):
        worker.waitUntilReady(60)
    assert worker.state == "dead"
    assert worker._files is None


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """What the worker does on Windows, with another program as taskkill; `asked` and `started` tell what was run."""
    import MVGLib.worker as module

    class Windows:
        def __init__(self) -> None:
            self.taskkill, self.started = tmp_path / "System32" / "taskkill.exe", []

        @property
        def asked(self) -> list[str]:
            log = tmp_path / "asked"
            return log.read_text().splitlines() if log.exists() else []

    def popen(command: Any, **options: Any) -> Any:
        found.started.append((command, dict(options)))
        options.pop("creationflags", None)  # POSIX refuses it
        return real(command, **options)

    found, real = Windows(), subprocess.Popen
    found.taskkill.parent.mkdir()
    found.taskkill.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\nkill -9 "$4"\n')
    found.taskkill.chmod(0o755)
    monkeypatch.setenv("SYSTEMROOT", str(tmp_path))
    monkeypatch.setattr(module.sys, "platform", "win32")
    monkeypatch.setattr(subprocess, "CREATE_NO_WINDOW", 0x08000000, raising=False)
    monkeypatch.setattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0x00000200, raising=False)
    monkeypatch.setattr(subprocess, "Popen", popen)
    return found


def test_on_windows_the_tree_is_ended_without_a_window(sleeper: Any, windows: Any) -> None:
    worker = sleeper("import time; time.sleep(600)")
    worker.start()
    pid = worker._process.pid
    assert windows.started[0][1]["creationflags"] == 0x08000000 | 0x00000200
    assert "start_new_session" not in windows.started[0][1]
    worker.stop(0.1)
    assert windows.asked == [f"/F /T /PID {pid}"]
    _, options = windows.started[1]
    assert options["creationflags"] == 0x08000000, "or a console window flashes up"
    assert options["stdin"] == subprocess.DEVNULL, "Slicer has no standard input that could be passed on"
    assert not is_alive(pid)
    assert worker.state == "stopped"


def test_on_windows_a_number_that_may_be_anothers_is_left_alone(sleeper: Any, windows: Any) -> None:
    """Windows gives numbers of processes away again soon."""
    line = json.dumps({"url": "http://127.0.0.1:1", "token": "secret", "pid": os.getpid(), "protocol": 1})
    worker = sleeper(f"print({line!r}, flush=True); input()")
    worker.waitUntilReady(60)
    worker._process.kill()
    wait_for(lambda: worker.poll(0.01) == "dead")
    worker = sleeper("input()")
    worker.start()
    worker.stop(20)
    assert windows.asked == []


def test_on_windows_without_taskkill_the_process_is_ended_all_the_same(sleeper: Any, windows: Any) -> None:
    windows.taskkill.unlink()
    worker = sleeper("import time; time.sleep(600)")
    worker.start()
    pid = worker._process.pid
    worker.kill()
    assert not is_alive(pid)


def test_a_program_that_is_not_there_is_told(tmp_path: Path) -> None:
    worker = Worker([str(tmp_path / "nothing")])
    with pytest.raises(WorkerError, match="cannot be run"):
        worker.start()
    assert worker.poll() == "dead"


def test_a_worker_leaves_no_files_and_no_token(sleeper: Any) -> None:
    line = json.dumps({"url": "http://127.0.0.1:1", "token": "secret", "pid": os.getpid(), "protocol": 1})
    worker = sleeper(f"print({line!r}, flush=True); input()")
    worker.waitUntilReady(60)
    files = worker._files
    assert (files / "answer").read_bytes() == b""
    assert files.stat().st_mode & 0o077 == 0
    worker.pid = None  # the one it named is this test's own
    worker.kill()
    assert not files.exists()


# --- the command ---


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the command says when it refuses; it must do so before it loads anything."""
    monkeypatch.delenv("MVG_API_KEY", raising=False)

    def run(*words: str) -> str:
        found = CliRunner().invoke(app, ["serve", *words, "--weights", "/nowhere.pt"])
        assert found.exit_code == 2
        return found.stderr

    return run


def test_other_machines_are_not_let_in_without_a_key(refused: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
                                                      ) -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5"):
        assert "a key is needed" in refused("--host", host)
    monkeypatch.setenv("MVG_API_KEY", "short")
    assert "at least 16" in refused("--host", "0.0.0.0")
    assert "is no file" in refused("--host", "0.0.0.0", "--key-file", str(tmp_path / "key"))
    (tmp_path / "key").write_text("with spaces and more of them\n")
    assert "without spaces" in refused("--host", "0.0.0.0", "--key-file", str(tmp_path / "key"))
    monkeypatch.setenv("MVG_API_KEY", "k" * 16)
    assert "nowhere.pt" in refused("--host", "0.0.0.0")  # the key is fine
    assert "leave out --host" in refused("--worker", "--host", "0.0.0.0")


def test_the_server_itself_loads_no_backend() -> None:
    code = "import sys, mvg_core.server.process; print({m.partition('.')[0] for m in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "fastapi" in loaded.stdout
    assert not {"'torch'", "'monai'", "'onnxruntime'"} & set(loaded.stdout.strip("{}\n").split(", "))


def test_a_key_is_read_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mvg_core.server.process import read_key

    (tmp_path / "key").write_text("a" * 20 + "\n")
    assert read_key(tmp_path / "key") == "a" * 20
    monkeypatch.setenv("MVG_API_KEY", "b" * 20)
    assert read_key(None) == "b" * 20
