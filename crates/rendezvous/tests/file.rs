//! The store in a file: ranks that die in the midst, files that are left over.

use std::{
    fs::{self, File},
    io::Write as _,
    path::PathBuf,
    thread,
    time::Duration,
};

use collectives_core::ErrorKind;
use collectives_rendezvous::{Deadline, FileStore, Store};
use tempfile::TempDir;

fn long() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

fn short() -> Deadline {
    Deadline::after(Duration::from_millis(20))
}

fn place() -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("store");
    (folder, path)
}

/// However much of its last record a writer that died has written, the others see what was before,
/// or all of it, and go on.
#[test]
fn a_writer_may_die_anywhere() {
    let (_folder, path) = place();
    let store = FileStore::create(&path, "run").unwrap();
    store.multi_set(&[("a", b"1"), ("n", b"5")], long()).unwrap();
    let before = fs::read(&path).unwrap();
    store.multi_set(&[("a", b"2"), ("b", b"3")], long()).unwrap();
    let after = fs::read(&path).unwrap();
    drop(store);
    for size in before.len()..=after.len() {
        fs::write(&path, &after[..size]).unwrap();
        let reader = FileStore::join(&path, "run", long()).unwrap();
        let whole = size == after.len();
        assert_eq!(reader.get("a", long()).unwrap(), if whole { b"2" } else { b"1" }, "{size}");
        assert_eq!(reader.check(&["b"], long()).unwrap(), whole, "{size}");
        assert_eq!(reader.add("n", 1, long()).unwrap(), 6, "{size}");
        let late = FileStore::join(&path, "run", long()).unwrap();
        assert_eq!(late.get("n", long()).unwrap(), b"6", "{size}");
        assert_eq!(late.check(&["b"], long()).unwrap(), whole, "{size}");
    }
}

/// The rest of a long torn record must not pass for records behind a short new one.
#[test]
fn what_a_dead_writer_left_does_not_come_back() {
    let (_folder, path) = place();
    let store = FileStore::create(&path, "run").unwrap();
    let start = fs::read(&path).unwrap();
    store.set("record", b"inner", long()).unwrap();
    let inner = fs::read(&path).unwrap()[start.len()..].to_vec();
    // A value that holds records, of which the last bytes are missing.
    store.set("torn", &inner.repeat(10), long()).unwrap();
    let torn = fs::metadata(&path).unwrap().len() - 1;
    File::options().write(true).open(&path).unwrap().set_len(torn).unwrap();

    let survivor = FileStore::join(&path, "run", long()).unwrap();
    survivor.set("s", b"", long()).unwrap();
    let reader = FileStore::join(&path, "run", long()).unwrap();
    assert_eq!(reader.num_keys(long()).unwrap(), 2);
    assert!(reader.check(&["record", "s"], long()).unwrap());
}

#[test]
fn damage_is_not_believed() {
    let (_folder, path) = place();
    let store = FileStore::create(&path, "run").unwrap();
    let start = fs::metadata(&path).unwrap().len() as usize;
    store.set("a", b"value", long()).unwrap();
    store.set("b", b"value", long()).unwrap();
    let good = fs::read(&path).unwrap();
    let mut refused = 0;
    for at in start..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x40;
        fs::write(&path, &bad).unwrap();
        let reader = FileStore::join(&path, "run", long()).unwrap();
        match reader.check(&["a"], long()) {
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::System);
                assert!(error.to_string().contains("is damaged"), "{error}");
                refused += 1;
            }
            // A length that reaches beyond the end cannot be told from a writer that died.
            Ok(_) => assert!(bad.len() - at >= 5, "byte {at}"),
        }
    }
    assert!(refused > (good.len() - start) / 2, "{refused} of {}", good.len() - start);
}

#[test]
fn a_file_of_another_run_is_not_taken() {
    let (_folder, path) = place();
    let error = FileStore::join(&path, "run 2", short()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    let old = FileStore::create(&path, "run 1").unwrap();
    old.set("id", b"stale", long()).unwrap();
    let error = FileStore::join(&path, "run 2", short()).unwrap_err();
    assert!(
        error.to_string().contains("no file of run 'run 2' within 20ms: it is of run 'run 1'"),
        "{error}"
    );

    // A rank that is early waits for the new file; one of the old run keeps to the old.
    let early = thread::spawn({
        let path = path.clone();
        move || FileStore::join(path, "run 2", long()).unwrap().get("id", long()).unwrap()
    });
    let new = FileStore::create(&path, "run 2").unwrap();
    old.set("id", b"staler", long()).unwrap();
    assert!(!new.check(&["id"], long()).unwrap());
    new.set("id", b"fresh", long()).unwrap();
    assert_eq!(early.join().unwrap(), b"fresh");
    let error = old.get("what run 2 has", short()).unwrap_err();
    assert!(error.to_string().contains("another run has replaced the file"), "{error}");
}

#[test]
fn what_is_no_store_is_said() {
    let (folder, path) = place();
    for content in [&b""[..], b"text", &[0; 100]] {
        fs::write(&path, content).unwrap();
        let error = FileStore::join(&path, "run", short()).unwrap_err();
        assert!(error.to_string().contains("no store of this library"), "{error}");
    }
    let nowhere = folder.path().join("no folder/store");
    let error = FileStore::create(&nowhere, "run").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::System);
    assert!(error.to_string().contains("no folder/store"), "{error}");
}

/// A rank that stops with the lock in its hand holds the others up, but not beyond their deadlines.
#[test]
fn a_lock_that_stays_is_a_timeout() {
    let (_folder, path) = place();
    let store = FileStore::create(&path, "run").unwrap();
    let mut other = File::options().read(true).write(true).open(&path).unwrap();
    other.lock().unwrap();
    let error = store.set("key", b"", short()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(error.to_string().contains("another process holds the lock"), "{error}");
    other.flush().unwrap();
    drop(other);
    store.set("key", b"", long()).unwrap();
}
