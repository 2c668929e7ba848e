"""Two workers behind a real sshd that share no file with the controller.

The second host is the loopback address, so nothing but good manners keeps a worker from reading the
controller's files. An audit hook enforces them: in a worker, opening, listing or changing anything
in the controller's project or in its copy of the harness raises.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import pytest
import pytest_autoquant
from pytest_autoquant.manifests.records.sensitivity_manifest import read_manifest

pytestmark = pytest.mark.slow

HARNESS = Path(pytest_autoquant.__file__).parent
PROGRAMS = {"sshd": "openssh-server", "ssh": "openssh-client", "ssh-keygen": "openssh-client"}
MANIFESTS = "*_quant_manifest.json"
STALLED = "test_sensitivity[wint4_aint8-w_per_out_channel-small]"
SELECTION = ("-v", "--aq-device=cpu", "--aq-sizes=small", "--aq-pairs=wint8_afp16,wint4_aint8")
CASES = {
    ("wint8_afp16", "default"),
    ("wint8_afp16", "w_per_out_channel"),
    ("wint4_aint8", "default"),
    ("wint4_aint8", "w_per_out_channel"),
}

SSHD_CONFIG = """
    ListenAddress 127.0.0.1
    Port {port}
    HostKey {folder}/host_key
    AuthorizedKeysFile {folder}/client_key.pub
    PidFile {folder}/sshd.pid
    PasswordAuthentication no
    PermitUserRC no
    StrictModes no
    UsePAM no
    SetEnv HOME={home}
"""
SSH_CONFIG = """
    Host host-a host-b
        HostName 127.0.0.1
        Port {port}
        IdentityFile {folder}/client_key
        IdentitiesOnly yes
        BatchMode yes
        StrictHostKeyChecking no
        UserKnownHostsFile /dev/null
        LogLevel ERROR
"""
CONFTEST = """
    import json, os, sys, time
    from pathlib import Path

    import pytest

    import pytest_autoquant

    def refuse(event, arguments):
        if event != "open" and not event.startswith("os."):
            return
        for argument in arguments:
            if isinstance(argument, (str, bytes, os.PathLike)):
                if os.fsdecode(argument).startswith({forbidden}):
                    raise PermissionError(f"not on this host: {{os.fsdecode(argument)}}")

    def pytest_configure(config):
        if hasattr(config, "workerinput"):
            sys.addaudithook(refuse)
            seen = {{"cwd": os.getcwd(), "harness": pytest_autoquant.__file__}}
            name = config.workerinput["workerid"] + ".json"
            (Path.home() / name).write_text(json.dumps(seen))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(item):
        if item.name == {stalled!r}:
            Path("stalled").touch()
            time.sleep(60)
        return (yield)
"""


@dataclass(frozen=True)
class Host:
    """One host as its worker knows it: the folder it starts in, and HOME."""

    name: str
    ssh_config: Path
    folder: Path
    home: Path

    @property
    def tx(self):
        return (
            f"--tx=ssh={self.name}//ssh_config={self.ssh_config}//python={sys.executable}"
            f"//chdir={self.folder}//env:OMP_NUM_THREADS=1"
        )


@pytest.fixture(scope="module")
def loopback(tmp_path_factory):
    """A folder with the ssh_config of a running sshd, and the HOME that it gives."""
    if sys.platform != "linux":
        pytest.skip("finds the workers' processes in Linux's /proc")
    # Debian keeps sshd out of a user's PATH, and sshd wants to be started by its full path.
    path = os.pathsep.join([os.environ["PATH"], "/usr/sbin"])
    for program, package in PROGRAMS.items():
        if shutil.which(program, path=path) is None:
            pytest.skip(f"{program} is not installed: apt-get install {package}")
    folder = tmp_path_factory.mktemp("sshd")
    (folder / "home").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for key in ("host_key", "client_key"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True
        )
    for name, text in {"sshd_config": SSHD_CONFIG, "ssh_config": SSH_CONFIG}.items():
        filled = dedent(text).format(port=port, folder=folder, home=folder / "home")
        (folder / name).write_text(filled)
    if os.geteuid() == 0:
        # As root sshd locks its unprivileged half in here; Debian's service makes it at boot.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    with (folder / "sshd.log").open("w") as log:
        command = [shutil.which("sshd", path=path), "-D", "-e", "-f", folder / "sshd_config"]
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log)
    try:
        wait_for(lambda: greets(port) or server.poll() is not None, "sshd", seconds=20)
        assert server.poll() is None, (folder / "sshd.log").read_text()
        yield folder
    finally:
        server.terminate()
        try:
            server.wait(timeout=10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


@pytest.fixture
def hosts(loopback, tmp_path_factory):
    """Two hosts, each with an empty folder of its own."""
    return [
        Host(
            name=name,
            ssh_config=loopback / "ssh_config",
            folder=tmp_path_factory.mktemp(name),
            home=loopback / "home",
        )
        for name in ("host-a", "host-b")
    ]


@pytest.fixture
def controller(tmp_path, spawn):
    """The controller's folder: a project with a conftest that xdist sends along."""
    write_conftest(tmp_path, stalled=None)
    return tmp_path


def write_conftest(controller, *, stalled):
    forbidden = tuple(f"{folder}{os.sep}" for folder in (controller, HARNESS))
    text = dedent(CONFTEST).format(forbidden=forbidden, stalled=stalled)
    (controller / "conftest.py").write_text(text)


def over_ssh(controller, hosts, cases="cases"):
    """Return the arguments that send the cases and the harness to two hosts and run them there.

    xdist takes the cases' path relative to what it sends, so it has to be absolute here.
    """
    sent = (f"--rsyncdir={controller}", f"--rsyncdir={HARNESS}", "--rsyncignore=reports")
    return ("--dist", "load", *(host.tx for host in hosts), *sent, str(controller / cases))


def greets(port):
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        return client.recv(4) == b"SSH-"
    return False


def wait_for(condition, what, *, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.05)


def processes_in(folder):
    """Return the ids of the processes that run in a folder."""
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        with suppress(OSError):  # it ended meanwhile, or is another user's
            if link.readlink() == folder:
                found.append(int(link.parent.name))
    return found


def files(folder):
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


def leaves(value, path=()):
    """Yield every value that is no container, with the keys that lead to it."""
    if isinstance(value, (dict, list)):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(child, (*path, key))
    else:
        yield path, value


def measured(root):
    """Return what all manifests below a report root say of the cases: its floats and the rest."""
    floats, others = {}, {}
    for path in root.rglob(MANIFESTS):
        manifest = json.loads(path.read_text())
        for part in ("timing", "memory", "environment", "measured_at"):
            del manifest[part]
        for keys, value in leaves(manifest, (path.relative_to(root).as_posix(),)):
            (floats if isinstance(value, float) else others)[keys] = value
    return floats, others


def test_two_hosts_measure_what_one_process_does(controller, hosts, spawn):
    granularities = "--aq-granularities=default,w_per_out_channel"
    own = files(controller)
    elsewhere = "--aq-report-dir=reports/alone"
    alone = spawn("-p", "no:xdist", "cases", elsewhere, *SELECTION, granularities)
    run = spawn(*over_ssh(controller, hosts), *SELECTION, granularities)
    assert alone.status == run.status == 0, run.output

    took_part = re.findall(r"^\[(\w+)\] \[ *\d+%\] PASSED cases/test_sens", run.output, re.M)
    assert set(took_part) == {"gw0", "gw1"}
    for worker, host in zip(("gw0", "gw1"), hosts, strict=True):
        seen = json.loads((host.home / f"{worker}.json").read_text())
        assert seen == {
            "cwd": str(host.folder),
            "harness": str(host.folder / "pytest_autoquant" / "__init__.py"),
        }

    read = [read_manifest(path).case for path in run.root.rglob(MANIFESTS)]
    assert {(case.pair, case.granularity) for case in read} == CASES
    floats, others = measured(run.root)
    expected_floats, expected_others = measured(controller / "reports" / "alone")
    assert others == expected_others
    assert floats == pytest.approx(expected_floats, rel=1e-6)

    assert files(run.root) == files(controller / "reports" / "alone")
    written = {path.name for path in files(run.root)}
    assert {"summary.json", "index.html", "layer-map.svg", "layer-sensitivity-report.md"} < written
    for path in files(run.root):
        text = (run.root / path).read_text()
        told = (str(controller), *(host.name for host in hosts), str(hosts[0].ssh_config))
        assert [word for word in told if word in text] == [], path
    for host in hosts:
        sent = host.folder / controller.name
        assert {path for path in files(sent) if path.suffix != ".pyc"} == own
        for place in (host.folder, host.home):
            assert not written & {path.name for path in files(place)}


def test_a_worker_killed_on_its_host_takes_only_its_own_case_with_it(controller, hosts, spawn):
    write_conftest(controller, stalled=STALLED)
    arguments = over_ssh(controller, hosts, "cases/test_sensitivity.py")
    granularities = "--aq-granularities=default,w_per_out_channel,w_group128"
    root = controller / "reports" / "tmp"
    with ThreadPoolExecutor() as pool:
        pending = pool.submit(spawn, *arguments, *SELECTION, granularities)

        def is_stalled():
            stalled = [host for host in hosts if (host.folder / "stalled").exists()]
            return pending.done() or (stalled and list(root.rglob(MANIFESTS)))

        wait_for(is_stalled, "a worker to stall", seconds=120)
        assert not pending.done(), pending.result().output
        (host,) = (host for host in hosts if (host.folder / "stalled").exists())
        (worker,) = processes_in(host.folder)
        finished = {path: path.read_bytes() for path in root.rglob(MANIFESTS)}
        os.kill(worker, signal.SIGKILL)
        run = pending.result()

    assert run.status == pytest.ExitCode.TESTS_FAILED, run.output
    assert f"crashed while running 'cases/test_sensitivity.py::{STALLED}'" in run.output
    assert "node down: Not properly terminated" in run.output
    assert finished
    assert {path: path.read_bytes() for path in finished} == finished
    read = [read_manifest(path).case for path in run.root.rglob(MANIFESTS)]
    others = {("wint8_afp16", "w_group128"), ("wint4_aint8", "w_group128")}
    assert {(case.pair, case.granularity) for case in read} == (
        CASES - {("wint4_aint8", "w_per_out_channel")} | others
    )
