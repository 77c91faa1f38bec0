//! Every store means the same by its operations, for one caller and for several at once.

use std::{collections::BTreeMap, sync::Arc, thread, time::Duration};

use collectives_core::ErrorKind;
use collectives_rendezvous::{
    Deadline, Dialect, FileStore, MemoryStore, PrefixStore, Store, TcpStore, TcpStoreServer,
    barrier, exchange,
};
use proptest::prelude::*;
use tempfile::TempDir;

/// A store that any number of clients open; it lives as long as this.
struct Place {
    name: &'static str,
    open: Box<dyn Fn() -> Arc<dyn Store>>,
}

/// All kinds of stores, empty.
fn places() -> Vec<Place> {
    let memory = MemoryStore::new();
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("store");
    FileStore::create(&path, "run").unwrap();
    let tcp = |dialect| {
        let server = TcpStoreServer::bind("127.0.0.1:0").unwrap();
        move || {
            let address = server.address().to_string();
            Arc::new(TcpStore::connect_as(&address, dialect, long()).unwrap()) as Arc<dyn Store>
        }
    };
    let prefixed = MemoryStore::new();
    vec![
        Place { name: "memory", open: Box::new(move || Arc::new(memory.clone())) },
        Place {
            name: "file",
            open: Box::new(move || {
                // The folder goes when the place does.
                Arc::new(FileStore::join(folder.path().join("store"), "run", long()).unwrap())
            }),
        },
        Place { name: "tcp", open: Box::new(tcp(Dialect::Torch22)) },
        Place { name: "tcp of 2.1", open: Box::new(tcp(Dialect::Torch21)) },
        Place {
            name: "prefix",
            open: Box::new(move || Arc::new(PrefixStore::new("a/b", prefixed.clone()))),
        },
    ]
}

/// For what must happen.
fn long() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

/// For what must not happen.
fn short() -> Deadline {
    Deadline::after(Duration::from_millis(20))
}

#[test]
fn values_are_set_read_and_deleted() {
    for place in places() {
        let (one, other) = ((place.open)(), (place.open)());
        one.set("key", b"first", long()).unwrap();
        assert_eq!(other.get("key", long()).unwrap(), b"first", "{}", place.name);
        other.set("key", b"", long()).unwrap();
        assert_eq!(one.get("key", long()).unwrap(), b"", "{}", place.name);
        one.multi_set(&[("a", b"1"), ("b", &[0xff; 100_000]), ("a", b"2")], long()).unwrap();
        assert_eq!(
            other.multi_get(&["b", "key", "a"], long()).unwrap(),
            [vec![0xff; 100_000], vec![], b"2".to_vec()],
            "{}",
            place.name
        );
        assert_eq!(one.num_keys(long()).unwrap(), 3, "{}", place.name);
        assert!(other.delete("a", long()).unwrap(), "{}", place.name);
        assert!(!one.delete("a", long()).unwrap(), "{}", place.name);
        assert!(!other.check(&["key", "a"], long()).unwrap(), "{}", place.name);
        assert!(one.check(&["key", "b"], long()).unwrap(), "{}", place.name);
        assert!(one.check(&[], long()).unwrap(), "{}", place.name);
        assert_eq!(one.missing(&["x", "key", "a"], long()).unwrap(), [0, 2], "{}", place.name);
        assert_eq!(one.multi_get(&[], long()).unwrap(), Vec::<Vec<u8>>::new(), "{}", place.name);
        one.wait(&[], long()).unwrap();
    }
}

#[test]
fn numbers_values_and_appends_mix() {
    for place in places() {
        let store = (place.open)();
        assert_eq!(store.add("n", 5, long()).unwrap(), 5, "{}", place.name);
        assert_eq!(store.add("n", -12, long()).unwrap(), -7, "{}", place.name);
        assert_eq!(store.get("n", long()).unwrap(), b"-7", "{}", place.name);
        store.append("n", b"1", long()).unwrap();
        assert_eq!(store.add("n", 0, long()).unwrap(), -71, "{}", place.name);
        store.append("new", b"ab", long()).unwrap();
        assert_eq!(store.get("new", long()).unwrap(), b"ab", "{}", place.name);

        // Of a store behind a socket, the refusal is the end of the connection.
        let error = store.add("new", 1, long()).unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::InvalidArgument | ErrorKind::Remote),
            "{}: {error}",
            place.name
        );
        assert_eq!(store.get("new", long()).unwrap(), b"ab", "{}", place.name);
    }
}

#[test]
fn compare_set_is_pytorchs() {
    for place in places() {
        let store = (place.open)();
        let swap = |expected: &str, desired: &str| {
            let value = store.compare_set("k", expected.as_bytes(), desired.as_bytes(), long());
            String::from_utf8(value.unwrap()).unwrap()
        };
        assert_eq!(swap("wrong", "x"), "wrong", "{}", place.name);
        assert!(!store.check(&["k"], long()).unwrap(), "{}", place.name);
        assert_eq!(swap("", "one"), "one", "{}", place.name);
        assert_eq!(swap("", "two"), "one", "{}", place.name);
        assert_eq!(swap("wrong", "two"), "one", "{}", place.name);
        assert_eq!(swap("one", "two"), "two", "{}", place.name);
    }
}

#[test]
fn waits_end_when_the_last_key_comes() {
    for place in places() {
        let (waiting, setting) = ((place.open)(), (place.open)());
        thread::scope(|scope| {
            let waiter = scope.spawn(move || waiting.multi_get(&["a", "b", "c", "d"], long()));
            setting.set("a", b"1", long()).unwrap();
            setting.append("b", b"2", long()).unwrap();
            setting.compare_set("c", b"", b"3", long()).unwrap();
            setting.add("d", 4, long()).unwrap();
            let values = waiter.join().unwrap().unwrap();
            assert_eq!(values, [b"1", b"2", b"3", b"4"], "{}", place.name);
        });
    }
}

#[test]
fn a_deadline_names_what_is_missing() {
    for place in places() {
        let store = (place.open)();
        store.set("here", b"", long()).unwrap();
        let errors = [
            store.wait(&["here", "absent", "gone"], short()).unwrap_err(),
            store.multi_get(&["here", "absent", "gone"], short()).unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.kind(), ErrorKind::Timeout, "{}: {error}", place.name);
            let text = error.to_string();
            let missing = "2 of 3 are missing after 20ms: 'absent', 'gone'";
            let prefixed = "2 of 3 are missing after 20ms: 'a/b/absent', 'a/b/gone'";
            assert!(text.contains(missing) || text.contains(prefixed), "{}: {text}", place.name);
            assert!(!error.poisons_communicator());
        }
        // And the store is as good as before.
        assert_eq!(store.get("here", long()).unwrap(), b"", "{}", place.name);
    }
}

#[test]
fn a_thread_that_waits_holds_up_nobody() {
    for place in places() {
        let store = (place.open)();
        thread::scope(|scope| {
            let waiters: Vec<_> =
                (0..3).map(|_| scope.spawn(|| store.get("late", long()))).collect();
            for turn in 0..20 {
                assert_eq!(store.add("turns", 1, long()).unwrap(), turn + 1, "{}", place.name);
            }
            store.set("late", b"now", long()).unwrap();
            for waiter in waiters {
                assert_eq!(waiter.join().unwrap().unwrap(), b"now", "{}", place.name);
            }
        });
    }
}

#[test]
fn nothing_is_lost_between_many() {
    const CLIENTS: usize = 6;
    const TURNS: usize = 40;
    for place in places() {
        let stores: Vec<_> = (0..CLIENTS).map(|_| (place.open)()).collect();
        thread::scope(|scope| {
            for (rank, store) in stores.iter().enumerate() {
                scope.spawn(move || {
                    for turn in 0..TURNS {
                        store.add("sum", rank as i64, long()).unwrap();
                        store.append("all", &[rank as u8], long()).unwrap();
                        store.set(&format!("{rank}/{turn}"), &[turn as u8], long()).unwrap();
                    }
                });
            }
        });
        let sum: usize = (0..CLIENTS).sum::<usize>() * TURNS;
        assert_eq!(stores[0].add("sum", 0, long()).unwrap(), sum as i64, "{}", place.name);
        let all = stores[0].get("all", long()).unwrap();
        for rank in 0..CLIENTS {
            let times = all.iter().filter(|byte| usize::from(**byte) == rank).count();
            assert_eq!(times, TURNS, "{}", place.name);
        }
        assert_eq!(stores[1].num_keys(long()).unwrap(), (CLIENTS * TURNS + 2) as u64);
    }
}

#[test]
fn only_one_of_many_wins() {
    for place in places() {
        let stores: Vec<_> = (0..5).map(|_| (place.open)()).collect();
        for round in 0..10 {
            let key = format!("leader {round}");
            let winners: Vec<_> = thread::scope(|scope| {
                let ranks: Vec<_> = stores
                    .iter()
                    .enumerate()
                    .map(|(rank, store)| {
                        let key = &key;
                        scope.spawn(move || {
                            store.compare_set(key, b"", &[b'0' + rank as u8], long()).unwrap()
                        })
                    })
                    .collect();
                ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
            });
            assert!(
                winners.iter().all(|winner| *winner == winners[0]),
                "{}: {winners:?}",
                place.name
            );
        }
    }
}

#[test]
fn ranks_exchange_what_they_have() {
    const SIZE: usize = 7;
    for place in places() {
        let stores: Vec<_> = (0..SIZE).map(|_| (place.open)()).collect();
        for round in 0..3 {
            thread::scope(|scope| {
                for (rank, store) in stores.iter().enumerate() {
                    let place = place.name;
                    scope.spawn(move || {
                        let part = format!("{rank} in {round}");
                        let name = format!("epoch {round}");
                        let parts =
                            exchange(store, &name, rank as u32, SIZE, part.as_bytes(), long())
                                .unwrap();
                        for (rank, part) in parts.iter().enumerate() {
                            assert_eq!(part, format!("{rank} in {round}").as_bytes(), "{place}");
                        }
                    });
                }
            });
        }
    }
}

#[test]
fn all_who_wait_are_told_who_is_missing() {
    for place in places() {
        let stores: Vec<_> = (0..6).map(|_| (place.open)()).collect();
        let come = [0, 2, 5];
        let errors: Vec<_> = thread::scope(|scope| {
            let ranks: Vec<_> = come
                .map(|rank| {
                    let store = &stores[rank as usize];
                    let deadline = Deadline::after(Duration::from_millis(300));
                    scope.spawn(move || barrier(store, "join", rank, 6, deadline).unwrap_err())
                })
                .into_iter()
                .collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        for error in &errors {
            assert_eq!(error.kind(), ErrorKind::Timeout, "{}: {error}", place.name);
            let text = error.to_string();
            assert!(
                text.contains(
                    "'join': ranks 1, 3 and 4 of 6 did not come within 300ms, says rank "
                ),
                "{}: {text}",
                place.name
            );
        }
        // Who comes late must not go on alone: not all of them, and not the last.
        for late in [1, 3, 4] {
            let error = barrier(&stores[late], "join", late as u32, 6, short()).unwrap_err();
            assert!(
                error.to_string().contains("did not come within 300ms"),
                "{}: {error}",
                place.name
            );
        }
    }
}

#[test]
fn two_processes_of_one_rank_are_noticed() {
    for place in places() {
        let store = (place.open)();
        let first = exchange(&store, "hosts", 1, 2, b"", short()).unwrap_err();
        assert_eq!(first.kind(), ErrorKind::Timeout);
        let error = exchange(&store, "hosts", 1, 2, b"", short()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{}: {error}", place.name);
        assert!(
            error.to_string().contains("2 processes came to 'hosts' as rank 1"),
            "{}: {error}",
            place.name
        );
        let error = exchange(&store, "hosts", 2, 2, b"", short()).unwrap_err();
        assert!(error.to_string().contains("no rank 2 in a world of 2"), "{}: {error}", place.name);
    }
}

/// One call of one client.
#[derive(Clone, Debug)]
enum Call {
    Set(String, Vec<u8>),
    Get(String),
    Wait(Vec<String>),
    Missing(Vec<String>),
    Check(Vec<String>),
    Add(String, i64),
    Append(String, Vec<u8>),
    CompareSet(String, Vec<u8>, Vec<u8>),
    Delete(String),
    MultiGet(Vec<String>),
    MultiSet(Vec<(String, Vec<u8>)>),
    NumKeys,
}

/// What a call brings; errors by their kinds.
#[derive(Debug, PartialEq)]
enum Outcome {
    Done,
    Bytes(Vec<u8>),
    Many(Vec<Vec<u8>>),
    Number(i64),
    Positions(Vec<usize>),
    Missing,
    Refused,
}

fn calls() -> impl Strategy<Value = Vec<(usize, Call)>> {
    // Few keys and values, so that they meet.
    let key = || prop::sample::select(vec!["a", "b", "c", "", "ключ"]).prop_map(str::to_owned);
    let keys = move || prop::collection::vec(key(), 0..4);
    let value = || {
        prop_oneof![
            Just(Vec::new()),
            Just(b"17".to_vec()),
            Just(b"-3".to_vec()),
            prop::collection::vec(any::<u8>(), 0..6),
        ]
    };
    let call = prop_oneof![
        (key(), value()).prop_map(|(key, value)| Call::Set(key, value)),
        key().prop_map(Call::Get),
        keys().prop_map(Call::Wait),
        keys().prop_map(Call::Missing),
        keys().prop_map(Call::Check),
        (key(), prop_oneof![-9..9_i64, any::<i64>()])
            .prop_map(|(key, delta)| Call::Add(key, delta)),
        (key(), value()).prop_map(|(key, value)| Call::Append(key, value)),
        (key(), value(), value()).prop_map(|(key, old, new)| Call::CompareSet(key, old, new)),
        key().prop_map(Call::Delete),
        keys().prop_map(Call::MultiGet),
        prop::collection::vec((key(), value()), 0..4).prop_map(Call::MultiSet),
        Just(Call::NumKeys),
    ];
    prop::collection::vec((0..3_usize, call), 0..40)
}

/// The obvious store.
#[derive(Default)]
struct Model(BTreeMap<String, Vec<u8>>);

impl Model {
    fn call(&mut self, call: &Call) -> Outcome {
        let map = &mut self.0;
        match call {
            Call::Set(key, value) => {
                map.insert(key.clone(), value.clone());
                Outcome::Done
            }
            Call::Get(key) => map.get(key).cloned().map_or(Outcome::Missing, Outcome::Bytes),
            Call::Wait(keys) => match keys.iter().all(|key| map.contains_key(key)) {
                true => Outcome::Done,
                false => Outcome::Missing,
            },
            Call::Missing(keys) => Outcome::Positions(
                (0..keys.len()).filter(|&at| !map.contains_key(&keys[at])).collect(),
            ),
            Call::Check(keys) => {
                Outcome::Number(keys.iter().all(|key| map.contains_key(key)).into())
            }
            Call::Add(key, delta) => {
                let old = match map.get(key) {
                    None => Some(0),
                    Some(value) => std::str::from_utf8(value)
                        .ok()
                        .and_then(|text| text.trim().parse::<i64>().ok()),
                };
                let Some(sum) = old.and_then(|old| old.checked_add(*delta)) else {
                    return Outcome::Refused;
                };
                map.insert(key.clone(), sum.to_string().into_bytes());
                Outcome::Number(sum)
            }
            Call::Append(key, value) => {
                map.entry(key.clone()).or_default().extend(value);
                Outcome::Done
            }
            Call::CompareSet(key, expected, desired) => {
                if map.get(key).map_or(expected.is_empty(), |value| value == expected) {
                    map.insert(key.clone(), desired.clone());
                }
                Outcome::Bytes(map.get(key).unwrap_or(expected).clone())
            }
            Call::Delete(key) => Outcome::Number(map.remove(key).is_some().into()),
            Call::MultiGet(keys) => {
                match keys.iter().map(|key| map.get(key).cloned()).collect::<Option<Vec<_>>>() {
                    Some(values) => Outcome::Many(values),
                    None => Outcome::Missing,
                }
            }
            Call::MultiSet(pairs) => {
                map.extend(pairs.iter().cloned());
                Outcome::Done
            }
            Call::NumKeys => Outcome::Number(map.len() as i64),
        }
    }
}

fn call(store: &dyn Store, call: &Call) -> Outcome {
    fn refs(keys: &[String]) -> Vec<&str> {
        keys.iter().map(String::as_str).collect()
    }
    // Nobody else writes, so what is not there does not come.
    let wait = Deadline::after(Duration::from_millis(2));
    let result = match call {
        Call::Set(key, value) => store.set(key, value, long()).map(|()| Outcome::Done),
        Call::Get(key) => store.get(key, wait).map(Outcome::Bytes),
        Call::Wait(keys) => store.wait(&refs(keys), wait).map(|()| Outcome::Done),
        Call::Missing(keys) => store.missing(&refs(keys), long()).map(Outcome::Positions),
        Call::Check(keys) => {
            store.check(&refs(keys), long()).map(|ready| Outcome::Number(ready.into()))
        }
        Call::Add(key, delta) => store.add(key, *delta, long()).map(Outcome::Number),
        Call::Append(key, value) => store.append(key, value, long()).map(|()| Outcome::Done),
        Call::CompareSet(key, expected, desired) => {
            store.compare_set(key, expected, desired, long()).map(Outcome::Bytes)
        }
        Call::Delete(key) => store.delete(key, long()).map(|was| Outcome::Number(was.into())),
        Call::MultiGet(keys) => store.multi_get(&refs(keys), wait).map(Outcome::Many),
        Call::MultiSet(pairs) => {
            let pairs: Vec<_> =
                pairs.iter().map(|(key, value)| (key.as_str(), value.as_slice())).collect();
            store.multi_set(&pairs, long()).map(|()| Outcome::Done)
        }
        Call::NumKeys => store.num_keys(long()).map(|keys| Outcome::Number(keys as i64)),
    };
    result.unwrap_or_else(|error| match error.kind() {
        ErrorKind::Timeout => Outcome::Missing,
        ErrorKind::InvalidArgument | ErrorKind::Remote => Outcome::Refused,
        other => panic!("{other:?}: {error}"),
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// Three clients call in turn; each store answers as the obvious one does.
    #[test]
    fn every_store_is_the_obvious_one(calls in calls()) {
        for place in places() {
            let clients: Vec<_> = (0..3).map(|_| (place.open)()).collect();
            let mut model = Model::default();
            for (at, (client, next)) in calls.iter().enumerate() {
                let expected = model.call(next);
                let outcome = call(&*clients[*client], next);
                prop_assert_eq!(
                    outcome, expected, "{}: call {} of client {}: {:?}", place.name, at, client, next
                );
            }
        }
    }
}
