"""PyTorch's TCPStore and ours, each as client and as server of the other.

    python3 interop.py PATH/tcp_store [--record FOLDER]

`tcp_store` is the example of this crate (cargo build --example tcp_store). Needs torch, from 2.1 on;
no GPU. With --record, what both sides said goes to FOLDER, for tests that run without torch.
"""

import argparse
import contextlib
import datetime
import os
import subprocess
import sys
import threading

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore

VERSION = torch.__version__.split("+")[0]
RELEASE = tuple(int(part) for part in VERSION.split(".")[:2])
TIMEOUT = datetime.timedelta(seconds=20)
# 2.1 had no handshake, and numbered queries from 0.
DIALECT = ["--torch21"] if RELEASE < (2, 2) else []


@contextlib.contextmanager
def our_server(program):
    server = subprocess.Popen(
        [program, "serve", "127.0.0.1:0"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield int(server.stdout.readline().rsplit(":", 1)[1])
    finally:
        server.stdin.close()
        server.wait(10)


@contextlib.contextmanager
def recorded(port, path):
    """The port to use in place of `port`; what is said there is in `path` in the end."""
    if not path:
        yield port
        return
    script = os.path.join(os.path.dirname(__file__), "recorder.py")
    recorder = subprocess.Popen(
        [sys.executable, script, str(port), path], stdout=subprocess.PIPE, text=True
    )
    yield int(recorder.stdout.readline())
    assert recorder.wait(30) == 0


def client(port, **options):
    return TCPStore("127.0.0.1", port, is_master=False, timeout=TIMEOUT, **options)


def options(libuv):
    # PyTorch 2.1 knows the argument, but its wheels lack the server.
    return {"use_libuv": libuv} if RELEASE >= (2, 2) else {}


def has(operation):
    return hasattr(TCPStore, operation)


def every_operation(store, libuv):
    """Calls all that this PyTorch has; the store is fresh."""
    big = "much " * 120
    store.set("key", "value")
    assert store.get("key") == b"value"
    store.set("empty", "")
    assert store.get("empty") == b""
    store.set("big", big)
    assert store.get("big") == big.encode()
    store.wait(["key", "empty"])
    store.wait(["key"], datetime.timedelta(seconds=5))
    try:
        store.wait(["key", "gone"], datetime.timedelta(milliseconds=150))
    except Exception as error:
        assert "imeout" in str(error), error
    else:
        raise AssertionError("a wait for what does not come ended")
    assert store.get("key") == b"value", "after a wait in vain"
    assert store.add("number", 41) == 41
    assert store.add("number", -83) == -42
    assert store.get("number") == b"-42"
    assert store.compare_set("swap", "x", "y") == b"x"
    assert store.compare_set("swap", "", "one") == b"one"
    assert store.compare_set("swap", "x", "two") == b"one"
    assert store.compare_set("swap", "one", "two") == b"two"
    assert store.delete_key("big") is True
    assert store.delete_key("big") is False
    if has("check"):
        assert store.check(["key", "swap"]) is True
        assert store.check(["key", "gone"]) is False
    if has("append"):
        store.append("list", "ab")
        store.append("list", "cd")
        assert store.get("list") == b"abcd"
    if has("multi_set"):
        store.multi_set(["m1", "m2"], ["1", ""])
        assert store.multi_get(["m2", "m1", "key"]) == [b"", b"1", b"value"]
    expected = 4 + has("append") + 2 * has("multi_set")
    assert store.num_keys() == expected, (store.num_keys(), expected)
    if has("queue_push") and libuv:
        assert store.queue_len("queue") == 0
        store.queue_push("queue", "first")
        store.queue_push("queue", "")
        assert store.queue_len("queue") == 2
        assert store.queue_pop("queue") == b"first"
        assert store.queue_pop("queue", False) == b""
        try:
            store.queue_pop("queue", False)
        except Exception as error:
            assert "empty" in str(error), error
        else:
            raise AssertionError("an empty queue gave something")
    if has("list_keys"):
        for key in ["key", "empty", "number", "list", "m1", "m2"]:
            store.delete_key(key)
        assert store.list_keys() == ["swap"], store.list_keys()
    if has("barrier"):
        store.barrier("alone", 1, TIMEOUT)
        try:
            store.barrier("two", 2, datetime.timedelta(milliseconds=150))
        except Exception as error:
            assert "imeout" in str(error), error
        else:
            raise AssertionError("a barrier of two ended with one")
    inner = PrefixStore("outer", PrefixStore("inner", store))
    inner.set("deep", "1")
    assert store.get("inner/outer/deep") == b"1"
    return sum(map(has, OPERATIONS))


OPERATIONS = [
    "set", "get", "wait", "check", "add", "append", "compare_set", "delete_key", "multi_get",
    "multi_set", "num_keys", "queue_push", "queue_pop", "queue_len", "list_keys", "barrier",
]  # fmt: skip


def in_threads(functions):
    errors = []

    def run(function):
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if errors:
        raise errors[0]


def torch_among_itself(libuv, record):
    """What our server must do as well."""
    server = torch_server(libuv)
    with recorded(server.port, record) as port:
        every_operation(client(port, wait_for_workers=False, **options(libuv)), libuv)


def torch_server(libuv):
    return TCPStore(
        "127.0.0.1", 0, is_master=True, timeout=TIMEOUT, wait_for_workers=False, **options(libuv)
    )


def torch_clients_on_our_server(program, libuv):
    with our_server(program) as port:
        count = every_operation(client(port, wait_for_workers=False, **options(libuv)), libuv)
    print(f"torch {VERSION} on our server, libuv {libuv}: {count} operations")
    # Several clients that wait for each other, and count themselves as workers.
    with our_server(program) as port:
        stores = [client(port, world_size=4, **options(libuv)) for _ in range(4)]
        assert stores[0].num_keys() == 1, "the count of workers is a key"

        def rank(number):
            store = stores[number]
            if number == 3:
                store.set("from 3", "hello")
            assert store.get("from 3") == b"hello"
            store.set(f"part {number}", str(number))
            parts = [f"part {other}" for other in range(4)]
            store.wait(parts)
            assert [store.get(part) for part in parts] == [b"0", b"1", b"2", b"3"]
            for _ in range(100):
                store.add("sum", number)
            if has("barrier"):
                store.barrier("all", 4, TIMEOUT)
                assert store.get("sum") == b"600"

        in_threads([lambda number=number: rank(number) for number in range(4)])
        assert stores[0].get("sum") == b"600"
        if has("queue_push") and libuv:
            # A pop that waits is woken by a push.
            popped = []
            in_threads(
                [
                    lambda: popped.append(stores[0].queue_pop("late")),
                    lambda: popped.append(stores[1].queue_pop("late")),
                    lambda: [stores[2].queue_push("late", value) for value in ("a", "b")],
                ]
            )
            assert sorted(popped) == [b"a", b"b"], popped
    print(f"torch {VERSION} on our server, libuv {libuv}: 4 clients at once")


def our_client_on_torch_server(program, libuv, record):
    store = torch_server(libuv)
    port = store.port
    features = ["--queues"] if has("queue_push") and libuv else []
    features += ["--list-keys"] if has("list_keys") else []
    with recorded(port, record) as there:
        address = f"127.0.0.1:{there}"
        subprocess.run([program, "check", address, *DIALECT, *features], check=True, timeout=60)
    print(f"our client on torch {VERSION}, libuv {libuv}: {' '.join(features) or 'every operation'}")
    if RELEASE >= (2, 2):
        # One that waits while Python sets.
        waiter = subprocess.Popen(
            [program, "wait", f"127.0.0.1:{port}", "late"], stdout=subprocess.PIPE, text=True
        )
        store.wait(["waiting"])
        store.set("late", "from Python")
        assert waiter.communicate(timeout=30)[0] == "from Python\n"
        print(f"our client on torch {VERSION}, libuv {libuv}: a wait")


GLOO = """
import datetime, sys, torch, torch.distributed as dist
rank, port = int(sys.argv[1]), int(sys.argv[2])
store = dist.TCPStore("127.0.0.1", port, 2, False, datetime.timedelta(seconds=30))
dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
tensor = torch.full((3,), rank + 1.0)
dist.all_reduce(tensor)
assert tensor.tolist() == [3.0] * 3, tensor
store.set(f"done {rank}", "1")
store.wait(["done 0", "done 1"])
dist.destroy_process_group()
"""


def a_process_group_on_our_server(program):
    if not dist.is_gloo_available():
        print("skipped: this torch has no gloo")
        return
    with our_server(program) as port:
        ranks = [
            subprocess.Popen([sys.executable, "-c", GLOO, str(rank), str(port)]) for rank in range(2)
        ]
        assert [rank.wait(90) for rank in ranks] == [0, 0]
    print(f"torch {VERSION}: init_process_group and all_reduce through our server")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program")
    parser.add_argument("--record", metavar="FOLDER")
    arguments = parser.parse_args()
    for libuv in [False, True]:
        kind = "libuv" if libuv else "plain"
        if libuv and not options(libuv):
            print(f"skipped: torch {VERSION} has no libuv server")
            continue

        def path(direction):
            folder = arguments.record
            return folder and os.path.join(folder, f"{direction}-{VERSION}-{kind}.txt")

        if arguments.record:
            torch_among_itself(libuv, path("client"))
        torch_clients_on_our_server(arguments.program, libuv)
        our_client_on_torch_server(arguments.program, libuv, path("server"))
    a_process_group_on_our_server(arguments.program)


if __name__ == "__main__":
    main()
