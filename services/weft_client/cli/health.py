"""`weft health`."""

import grpc
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc

from weft_client.cli.output import print_fields, print_json
from weft_client.cli.session import JsonFlag, connected
from weft_client.sync.connection import Connection
from weft_common.client import error_from_rpc

_SERVICES = ("activations", "cache", "trainer", "attribution")
_TIMEOUT_S = 10.0
_State = health_pb2.HealthCheckResponse.ServingStatus


def show_health(as_json: JsonFlag = False) -> None:
    """Ask every service that is known whether it serves; exit 1 where one does not."""
    with connected() as client:
        connection = Connection(client.endpoints)
        try:
            states = {name: _state(connection.channel(name)) for name in _SERVICES if name in client.endpoints.services}
        finally:
            connection.close()
    if as_json:
        print_json({"services": [{"service": name, "state": state} for name, state in states.items()]})
    else:
        print_fields(list(states.items()))
    if any(state != _State.Name(_State.SERVING) for state in states.values()):
        raise typer.Exit(1)


def _state(channel: grpc.Channel) -> str:
    """One service's own word, or why there is none."""
    try:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_S)
    except grpc.RpcError as error:
        return error_from_rpc(error).message
    return str(_State.Name(answer.status))
