"""How does this process come into a Ray cluster? As one of its drivers (host:port), or through Ray Client (ray://host:port), from a machine outside."""

import logging
import os
import socket
from typing import Any

import grpc
import ray
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray._private.grpc_utils import init_grpc_channel
from ray._private.services import canonicalize_bootstrap_address_or_die
from ray.core.generated import ray_client_pb2
from ray.exceptions import AuthenticationError

from workbench.errors import InputError

CLIENT = "ray://"
"""How the address of a Ray Client server begins."""

LOST = (ConnectionError, grpc.RpcError)
"""What Ray raises when a Ray Client server is gone."""

KINDS = "an address is auto, host:port, or ray://host:port"

_PROTOCOL: Any = ray_client_pb2  # its classes are made when it is imported
_PING = _PROTOCOL.ClusterInfoRequest(type=_PROTOCOL.ClusterInfoType.PING).SerializeToString()
_QUESTIONS = {
    "client": ("/ray.rpc.RayletDriver/ClusterInfo", _PING),
    "head": ("/ray.rpc.NodeInfoGcsService/CheckAlive", b""),
}
"""What to ask a port, as bytes of the protocol, to know which of Ray's it is."""


def join(address: str | None) -> bool:
    """Connect to a cluster; whether it is one of this process alone. Raises `InputError` where there is none, or it lets this process not in."""
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    logging.getLogger("ray").setLevel(logging.ERROR)
    where = "of this machine alone" if address is None else f"at {address}"
    try:
        check_there(address)
        _begin(address or "local")
    except InputError:
        raise
    except AuthenticationError as error:
        raise InputError("RAY_AUTH_MODE=token asks for the token of a Ray cluster, and there is none in RAY_AUTH_TOKEN or ~/.ray/auth_token") from error
    except (ConnectionAbortedError, RuntimeError) as error:
        raise InputError(f"the Ray cluster {where} cannot be joined: {' '.join(str(error).split()).rstrip('.')}") from error
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise InputError(f"there is no Ray cluster {where}: {reason}; begin one with: ray start --head") from error
    return address is None


def _begin(address: str, attempts: int = 2) -> None:
    """Let Ray connect; again if the process that a Ray Client server begins for this one dies at once, as it may in the first seconds of a cluster."""
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    except ConnectionAbortedError:
        if attempts == 1:
            raise
        _begin(address, attempts - 1)


def check_there(address: str | None) -> None:
    """Raise what a connection raises if nobody listens there, or where the last cluster of this machine was, and `InputError` as `_check_port` does.

    Ray itself would try for half a minute and more, and then not say why.
    """
    if address is None:
        return
    place = canonicalize_bootstrap_address_or_die(address) if address == "auto" else address
    host, colon, port = place.removeprefix(CLIENT).rpartition(":")
    if not port.isdecimal() and (colon or place.startswith(CLIENT)):
        raise ValueError(KINDS)
    if colon:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        if address == "auto" and "RAY_ADDRESS" not in os.environ:
            maybe_enable_token_auth_if_token_available(warn_if_disabled=False)  # as Ray does, for the cluster of this machine alone
        _check_port(address, place)


def _check_port(address: str, place: str) -> None:
    """Raise `InputError` if a port wants another token, or is of the other kind, and `ConnectionError` if it is none of Ray's: Ray would ask it for minutes."""
    there = place.removeprefix(CLIENT)
    with init_grpc_channel(there) as channel:
        said = {name: _code(channel, *question) for name, question in _QUESTIONS.items()}
    if grpc.StatusCode.UNAUTHENTICATED in said.values():
        why = "has another" if os.environ.get("RAY_AUTH_MODE", "").lower() == "token" else "shows none"
        mend = "say RAY_AUTH_MODE=token, with the cluster's token in RAY_AUTH_TOKEN or ~/.ray/auth_token"
        raise InputError(f"the Ray cluster at {address} lets nobody in without its token, and this process {why}; {mend}")
    if place.startswith(CLIENT) and said["head"] is grpc.StatusCode.OK:
        raise InputError(f"{there} is the head of a Ray cluster and not its Ray Client server; give --address {there}")
    if not place.startswith(CLIENT) and said["client"] is grpc.StatusCode.OK:
        raise InputError(f"{there} is a Ray Client server and not the head of the cluster; give --address {CLIENT}{there}")
    if grpc.StatusCode.OK not in said.values():
        raise ConnectionError("something else listens there")


def _code(channel: grpc.Channel, method: str, request: bytes) -> grpc.StatusCode:
    """How a port answers."""
    try:
        channel.unary_unary(method)(request, timeout=15)
    except grpc.RpcError as error:
        return error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
    return grpc.StatusCode.OK
