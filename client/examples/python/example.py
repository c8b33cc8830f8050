"""The key/value store and its locks from Python, with nothing but the .proto files.

    flotilla proto protos
    pip install -r requirements.txt
    python example.py protos 127.0.0.1:7300

Any gRPC client can do what this does; the stubs are made from the files when it starts. It shows
what a client has to keep in mind: an identity makes a request exactly-once, what is expected is in
the reply, and the metadata of an error says whether the request may have been executed.
"""

import importlib
import os
import pathlib
import sys
import tempfile

import grpc
from grpc_tools import protoc


def stubs(protos):
    """Makes Python modules of the .proto files and imports those of the store and of its locks."""
    made = tempfile.mkdtemp()
    files = [str(path.relative_to(protos)) for path in pathlib.Path(protos).rglob("*.proto")]
    include = os.path.join(os.path.dirname(protoc.__file__), "_proto")
    options = [f"-I{protos}", f"-I{include}", f"--python_out={made}", f"--grpc_python_out={made}"]
    if protoc.main(["protoc", *options, *files]) != 0:
        sys.exit("the .proto files do not compile")
    sys.path.insert(0, made)
    names = ("flotilla.kv.v1.kv", "flotilla.lock.v1.lock")
    return [importlib.import_module(name + kind) for name in names for kind in ("_pb2", "_pb2_grpc")]


class Requests:
    """Identities of the requests to one shard: each keeps its own over all its retries."""

    def __init__(self, kv, kv_pb2, key):
        self.pb2 = kv_pb2
        self.client = os.urandom(16)
        self.sequence = 0
        self.header = kv.Time(kv_pb2.TimeRequest(key=key)).header

    def next(self):
        """One at a time: with a new request, all earlier ones are acknowledged."""
        self.sequence += 1
        return self.pb2.RequestId(
            client=self.client,
            sequence=self.sequence,
            acknowledged=self.sequence - 1,
            expires_ms=self.header.shard_time_ms + 60_000,
            shards=self.header.shards,
        )


def main(protos, address):
    kv_pb2, kv_grpc, lock_pb2, lock_grpc = stubs(protos)
    with grpc.insecure_channel(address) as channel:
        kv, locks = kv_grpc.KvStub(channel), lock_grpc.LockStub(channel)
        key, lock = b"{python}/key", b"{python}"
        two = b"{python}/two"
        requests = Requests(kv, kv_pb2, key)
        for earlier in (key, two):
            kv.Delete(kv_pb2.DeleteRequest(key=earlier, id=requests.next()), timeout=10)

        # A watch tells everything from here on; the first message says that it has begun.
        keys = kv_pb2.KeyRange(prefix=b"{python}/")
        watch = kv.Watch(kv_pb2.WatchRequest(ranges=[keys]))
        assert next(watch).HasField("begun")

        # On a condition: what does not hold is no error, and the reply says what is there.
        new = kv_pb2.PutRequest(key=key, value=b"ahoy", expected_version=0, id=requests.next())
        print("put: version", kv.Put(new, timeout=10).written.version)
        new.id.CopyFrom(requests.next())
        print("put once more:", kv.Put(new, timeout=10).mismatch.current.value.decode(), "is there")

        # Exactly once: the same request again, as after a lost answer, appends nothing.
        append = kv_pb2.AppendRequest(key=key, value=b", world", id=requests.next())
        first, again = kv.Append(append, timeout=10), kv.Append(append, timeout=10)
        assert again.header.duplicate and again.appended == first.appended
        print("get:", kv.Get(kv_pb2.GetRequest(key=key)).pair.value.decode())

        # A transaction: its keys share a {tag}, and so a shard.
        absent = kv_pb2.Compare(key=two, relation=kv_pb2.RELATION_EQUAL, version=0)
        put = kv_pb2.Operation(put=kv_pb2.PutOperation(key=two, value=b"2"))
        txn = kv_pb2.TxnRequest(compares=[absent], then=[put], id=requests.next())
        print("txn: succeeded", kv.Txn(txn, timeout=10).done.succeeded)
        page = kv.Scan(kv_pb2.ScanRequest(range=keys), timeout=10)
        print("scan:", ", ".join(pair.key.decode() for pair in page.pairs))

        # A lock, and a write that only its holder can make.
        acquire = lock_pb2.AcquireRequest(name=lock, ttl_ms=10_000, owner=b"python", id=requests.next())
        held = locks.Acquire(acquire, timeout=10).held
        guard = kv_pb2.Guard(lock=lock, token=held.token)
        guarded = kv_pb2.PutRequest(key=key, value=b"guarded", guard=guard, id=requests.next())
        assert kv.Put(guarded, timeout=10).HasField("written")
        release = lock_pb2.ReleaseRequest(name=lock, lease_id=held.lease_id)
        locks.Release(release, timeout=10)
        guarded.id.CopyFrom(requests.next())
        print("late write refused:", kv.Put(guarded, timeout=10).HasField("guard_refused"))

        # Many requests in flight on one stream; replies come as they are ready.
        gets = [kv_pb2.GetRequest(key=two) for _ in range(100)]
        asked = [kv_pb2.PipelineRequest(number=n, request=kv_pb2.Request(get=get)) for n, get in enumerate(gets)]
        replies = [reply for reply in kv.Pipeline(iter(asked), timeout=10)]
        assert {reply.number for reply in replies} == set(range(100))
        print("pipeline:", len(replies), "replies")

        # What is wrong has a status, and says whether it may have been executed.
        try:
            kv.Put(kv_pb2.PutRequest(key=b"", value=b"nothing"), timeout=10)
        except grpc.RpcError as error:
            metadata = dict(error.trailing_metadata())
            print("error:", error.code().name, "executed", metadata["flotilla-executed"])

        told = []
        while len(told) < 4:
            told += [event.key.decode() for event in next(watch).events.events]
        print("watch:", ", ".join(told))
        watch.cancel()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2])
