"""Fabric's messages as typed values: the only module of the demo that touches the untyped protobuf bindings.

Names and numbers are those of Fabric's peer/chaincode_shim.proto, as the package hyperledger-fabric-protos has them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, cast

import fabric_protos.ledger.queryresult.kv_query_result_pb2 as queryresult_module
import fabric_protos.peer.chaincode_pb2 as chaincode_module
import fabric_protos.peer.chaincode_shim_pb2 as shim_module
import fabric_protos.peer.proposal_response_pb2 as response_module

# The bindings come without stubs.
_queryresult = cast("Any", queryresult_module)
_chaincode = cast("Any", chaincode_module)
_shim = cast("Any", shim_module)
_response = cast("Any", response_module)

REGISTER_METHOD = "/protos.ChaincodeSupport/Register"


class Kind(IntEnum):
    """The kinds of ChaincodeMessage that the peer's stand-in knows."""

    REGISTER = 1
    REGISTERED = 2
    INIT = 3
    READY = 4
    TRANSACTION = 5
    COMPLETED = 6
    ERROR = 7
    GET_STATE = 8
    PUT_STATE = 9
    DEL_STATE = 10
    RESPONSE = 13
    GET_STATE_BY_RANGE = 14
    QUERY_STATE_NEXT = 16
    QUERY_STATE_CLOSE = 17
    KEEPALIVE = 18


@dataclass(frozen=True)
class ChaincodeMessage:
    """One message of the stream between peer and chaincode; `kind` may be a number that Kind does not have."""

    kind: int
    payload: bytes = b""
    txid: str = ""
    channel_id: str = ""

    @property
    def kind_name(self) -> str:
        """Return Fabric's name of the kind, or the number of an unknown one."""
        return Kind(self.kind).name if self.kind in set(Kind) else str(self.kind)


@dataclass(frozen=True)
class Response:
    """What a transaction returned: 200 is success, 400 and more is not endorsed."""

    status: int
    message: str
    payload: bytes


@dataclass(frozen=True)
class StateRequest:
    """What chaincode asks the ledger: the fields of GetState, PutState, DelState and GetStateByRange."""

    collection: str = ""
    key: str = ""
    value: bytes = b""
    end_key: str = ""
    paged: bool = False


def encode(message: ChaincodeMessage) -> bytes:
    """Return the bytes of `message` as they go over gRPC."""
    pb = _shim.ChaincodeMessage(
        type=message.kind, payload=message.payload, txid=message.txid, channel_id=message.channel_id
    )
    return bytes(pb.SerializeToString())


def decode(data: bytes) -> ChaincodeMessage:
    """Return the message in `data`. Raises protobuf's DecodeError, which gRPC turns into a failed call."""
    pb = _shim.ChaincodeMessage.FromString(data)
    return ChaincodeMessage(int(pb.type), bytes(pb.payload), str(pb.txid), str(pb.channel_id))


def encode_chaincode_id(chaincode_id: str) -> bytes:
    """Return the payload of REGISTER."""
    return bytes(_chaincode.ChaincodeID(name=chaincode_id).SerializeToString())


def decode_chaincode_id(payload: bytes) -> str:
    """Return the chaincode id in the payload of REGISTER."""
    return str(_chaincode.ChaincodeID.FromString(payload).name)


def encode_input(arguments: Iterable[bytes]) -> bytes:
    """Return the payload of TRANSACTION: the function's name and its arguments."""
    return bytes(_chaincode.ChaincodeInput(args=list(arguments)).SerializeToString())


def decode_response(payload: bytes) -> Response:
    """Return what COMPLETED carries."""
    pb = _response.Response.FromString(payload)
    return Response(int(pb.status), str(pb.message), bytes(pb.payload))


def decode_state_request(message: ChaincodeMessage) -> StateRequest:
    """Return what GET_STATE, PUT_STATE, DEL_STATE or GET_STATE_BY_RANGE asks for."""
    match message.kind:
        case Kind.PUT_STATE:
            put = _shim.PutState.FromString(message.payload)
            return StateRequest(put.collection, put.key, value=bytes(put.value))
        case Kind.GET_STATE_BY_RANGE:
            scan = _shim.GetStateByRange.FromString(message.payload)
            return StateRequest(scan.collection, scan.startKey, end_key=scan.endKey, paged=bool(scan.metadata))
        case Kind.DEL_STATE:
            delete = _shim.DelState.FromString(message.payload)
            return StateRequest(delete.collection, delete.key)
        case _:
            get = _shim.GetState.FromString(message.payload)
            return StateRequest(get.collection, get.key)


def decode_query_id(message: ChaincodeMessage) -> str:
    """Return the id of the query that QUERY_STATE_NEXT or QUERY_STATE_CLOSE is about."""
    binding = _shim.QueryStateNext if message.kind == Kind.QUERY_STATE_NEXT else _shim.QueryStateClose
    return str(binding.FromString(message.payload).id)


def encode_query_response(
    namespace: str, results: Iterable[tuple[str, bytes]], query_id: str, *, has_more: bool
) -> bytes:
    """Return the payload of the RESPONSE to a query: some of its keys and values, and whether there are more."""
    entries = [
        _shim.QueryResultBytes(
            resultBytes=_queryresult.KV(namespace=namespace, key=key, value=value).SerializeToString()
        )
        for key, value in results
    ]
    return bytes(_shim.QueryResponse(results=entries, has_more=has_more, id=query_id).SerializeToString())
