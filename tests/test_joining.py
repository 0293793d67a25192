"""Is a Ray cluster joined through Ray Client as it is by host and port, and is what keeps one out of it said: another token, a port of the other kind?"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import pytest

import workbench
from workbench.errors import InputError
from workbench.executors import Wanted, executor, joining, on_ray
from workbench.sweeping import Dataset, Sweep, run

pytestmark = pytest.mark.slow

SOURCE = Path(workbench.__file__).parents[1]
TOKEN, OTHER = "0123456789abcdef" * 2, "f" * 32
HEAD = """
import sys
from ray.cluster_utils import Cluster
small = {"object_store_memory": 80 * 2**20, "num_cpus": 2, "include_dashboard": False}
made = Cluster(initialize_head=True, head_node_args={**small, "ray_client_server_port": int(sys.argv[1]), "temp_dir": sys.argv[2]})
print(made.address, flush=True)
sys.stdin.read()
made.shutdown()
"""
ASK = """
import sys
from workbench.errors import InputError
from workbench.executors.joining import join
for address in sys.argv[1:]:
    try:
        join(address)
    except InputError as error:
        print(error)
"""


def environment(**more):
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": str(SOURCE),
        **more,
    }


def asked(*addresses, **more):
    """What a process of its own is told when it joins, a line for each address."""
    said = subprocess.run([sys.executable, "-c", ASK, *addresses], capture_output=True, text=True, env=environment(**more), cwd=SOURCE, timeout=120, check=True)
    return said.stdout.splitlines()


@pytest.fixture(scope="module")
def addresses():
    """A cluster that wants a token: the addresses of its head and of its Ray Client server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tempfile.mkdtemp(prefix="ray")  # names of sockets must be short
    given = environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN)
    with subprocess.Popen([sys.executable, "-c", HEAD, str(port), folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=given) as head:
        address = head.stdout.readline().strip()
        yield address, f"ray://{address.rpartition(':')[0]}:{port}"
        head.stdin.close()
    shutil.rmtree(folder, ignore_errors=True)


def test_a_sweep_through_ray_client_leaves_the_same_bytes(addresses, folders, tmp_path):
    with closing(executor(cpus=1)) as alone:
        assert run(Sweep((Wanted(folders[0]),), ("induction",)), Dataset(tmp_path / "here"), alone).failed == {}
    command = ["sweep", "--model", folders[0], "--probe", "induction", "--executor", "ray", "--address", addresses[1], "--out", str(tmp_path / "there")]
    given = environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN)
    said = subprocess.run([sys.executable, "-m", "workbench.cli", *command], capture_output=True, text=True, env=given, cwd=SOURCE, timeout=240, check=False)
    assert said.returncode == 0, said.stderr
    left = [{path.relative_to(root): path.read_bytes() for path in root.rglob("*.parquet")} for root in (tmp_path / "here", tmp_path / "there")]
    assert len(left[0]) == 3
    assert left[0] == left[1]


def test_a_token_that_is_missing_or_another_is_said_at_once(addresses):
    for address in addresses:
        with pytest.raises(InputError, match=r"lets nobody in without its token, and this process shows none; say RAY_AUTH_MODE=token, with the cluster's"):
            joining.check_there(address)
    for said in asked(*addresses, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=OTHER):
        assert "lets nobody in without its token, and this process has another" in said
    for said in asked(*addresses, RAY_AUTH_MODE="token", HOME="/nowhere"):
        assert said.startswith("RAY_AUTH_MODE=token asks for the token of a Ray cluster, and there is none")


def test_a_port_of_the_other_kind_is_said_with_the_address_that_is_meant(addresses):
    head, client = addresses
    wrong = f"ray://{head}", client.removeprefix("ray://")
    first, second = asked(*wrong, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN)
    assert first == f"{head} is the head of a Ray cluster and not its Ray Client server; give --address {head}"
    assert second == f"{wrong[1]} is a Ray Client server and not the head of the cluster; give --address {client}"


def test_a_cluster_of_its_own_that_does_not_begin_is_not_said_to_be_at_none(monkeypatch):
    monkeypatch.setattr(joining.ray, "is_initialized", lambda: False)
    for error, said in ((RuntimeError("no room"), "of this machine alone cannot be joined: no room"), (OSError("no room"), "of this machine alone: no room")):
        monkeypatch.setattr(joining.ray, "init", lambda error=error, **_: (_ for _ in ()).throw(error))
        with pytest.raises(InputError, match=said):
            joining.join(None)


def test_an_address_of_ipv6_stands_in_brackets(monkeypatch):
    asked = []
    monkeypatch.setattr(joining.socket, "create_connection", lambda place, timeout: asked.append(place) or socket.socket())
    monkeypatch.setattr(joining, "_check_port", lambda *_: None)
    joining.check_there("[::1]:6379")
    joining.check_there("ray://[::1]:10001")
    assert asked == [("::1", 6379), ("::1", 10001)]


def test_a_cluster_that_is_lost_is_said(monkeypatch):
    chosen = object.__new__(on_ray.OnRay)
    for lost in (ConnectionError("gone"), joining.grpc.RpcError()):
        monkeypatch.setattr(on_ray.OnRay, "_ended", lambda self, lost=lost: (_ for _ in ()).throw(lost))
        with pytest.raises(InputError, match="can no longer be reached; what is finished lies where it was written"):
            list(chosen.outcomes())
