//! Every operation of a store behind a socket, with what it must bring: for our server, for PyTorch's
//! two, and for recordings of theirs.

use std::{fmt::Debug, time::Duration};

use collectives_core::{ErrorKind, Result};
use collectives_rendezvous::{Deadline, Store, TcpStore};

/// What a server knows beyond what all do.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Features {
    /// Queues: PyTorch 2.8 with libuv, and ours.
    pub(crate) queues: bool,
    /// A list of keys: PyTorch 2.11, and ours.
    pub(crate) list_keys: bool,
}

/// Calls everything; returns what was not as it should be.
pub(crate) fn run(store: &TcpStore, features: Features) -> Vec<String> {
    let mut wrong = Wrong(Vec::new());
    let long = || Deadline::after(Duration::from_secs(30));
    let big = vec![0xa5; 600];

    wrong.check("num_keys", store.num_keys(long()), 0);
    wrong.check("set", store.set("key", b"value", long()), ());
    wrong.check("get", store.get("key", long()), b"value".to_vec());
    wrong.check("set to nothing", store.set("empty", b"", long()), ());
    wrong.check("get nothing", store.get("empty", long()), vec![]);
    wrong.check("set much", store.set("big", &big, long()), ());
    wrong.check("get much", store.get("big", long()), big.clone());
    wrong.check("check", store.check(&["key", "big"], long()), true);
    wrong.check("check what is not there", store.check(&["key", "gone"], long()), false);
    wrong.check("missing", store.missing(&["gone", "key", "far"], long()), vec![0, 2]);
    wrong.check("wait", store.wait(&["key", "empty"], long()), ());
    wrong.refused(
        "wait in vain",
        store.wait(&["key", "gone"], Deadline::after(Duration::from_millis(150))),
        ErrorKind::Timeout,
    );
    wrong.check("add", store.add("number", 41, long()), 41);
    wrong.check("add again", store.add("number", -83, long()), -42);
    wrong.check("get a number", store.get("number", long()), b"-42".to_vec());
    wrong.check("append", store.append("list", b"ab", long()), ());
    wrong.check("append again", store.append("list", b"cd", long()), ());
    wrong.check("get what was appended", store.get("list", long()), b"abcd".to_vec());
    let swap =
        |expected: &[u8], desired: &[u8]| store.compare_set("swap", expected, desired, long());
    wrong.check("compare_set, not there", swap(b"x", b"y"), b"x".to_vec());
    wrong.check("compare_set, first", swap(b"", b"one"), b"one".to_vec());
    wrong.check("compare_set, other", swap(b"x", b"two"), b"one".to_vec());
    wrong.check("compare_set, same", swap(b"one", b"two"), b"two".to_vec());
    wrong.check("multi_set", store.multi_set(&[("m1", b"1"), ("m2", b"")], long()), ());
    wrong.check(
        "multi_get",
        store.multi_get(&["m2", "big", "m1"], long()),
        vec![vec![], big, b"1".to_vec()],
    );
    wrong.check("num_keys at last", store.num_keys(long()), 8);
    wrong.check("delete", store.delete("big", long()), true);
    wrong.check("delete again", store.delete("big", long()), false);
    wrong.check("announce_worker", store.announce_worker(long()), 1);
    wrong.check("wait_for_workers", store.wait_for_workers(1, long()), ());
    if features.queues {
        wrong.check("queue_len", store.queue_len("queue", long()), 0);
        wrong.check("queue_pop of nothing", store.queue_pop("queue", long()), None);
        wrong.check("queue_push", store.queue_push("queue", b"first", long()), ());
        wrong.check("queue_push again", store.queue_push("queue", b"", long()), ());
        wrong.check("queue_len of two", store.queue_len("queue", long()), 2);
        wrong.check("wait for a queue", store.wait(&["queue"], long()), ());
        wrong.check("queue_pop", store.queue_pop("queue", long()), Some(b"first".to_vec()));
        wrong.check("queue_pop again", store.queue_pop("queue", long()), Some(vec![]));
        wrong.check("queue_pop at last", store.queue_pop("queue", long()), None);
    }
    if features.list_keys {
        let keys = store.list_keys(long()).map(|mut keys| {
            keys.sort_unstable();
            keys.join(" ")
        });
        wrong.check("list_keys", keys, "empty key list m1 m2 number swap".to_owned());
    }
    wrong.0
}

struct Wrong(Vec<String>);

impl Wrong {
    fn check<T: Debug + PartialEq>(&mut self, call: &str, result: Result<T>, expected: T) {
        match result {
            Ok(result) if result == expected => {}
            Ok(result) => self.0.push(format!("{call}: {result:?}, want {expected:?}")),
            Err(error) => self.0.push(format!("{call}: {error}")),
        }
    }

    fn refused<T: Debug>(&mut self, call: &str, result: Result<T>, kind: ErrorKind) {
        match result {
            Err(error) if error.kind() == kind => {}
            other => self.0.push(format!("{call}: {other:?}, want {kind:?}")),
        }
    }
}
