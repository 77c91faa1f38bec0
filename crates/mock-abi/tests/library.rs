//! The shared library as programs find it: what it exports, and what the loader says of it.

use std::{
    collections::BTreeSet,
    env, fs,
    path::PathBuf,
    process::{Command, Output},
};

use collectives_nccl_abi::{Library, Table, Vendor, ncclResult_t, ncclUniqueId};
use object::{Object as _, ObjectSymbol as _};

/// The library, beside this test.
fn library() -> PathBuf {
    let test = env::current_exe().expect("a test has a path");
    test.with_file_name("libcollectives_mock_abi.so")
}

fn exports() -> BTreeSet<String> {
    let file = fs::read(library()).expect("the library is built with its tests");
    let file = object::File::parse(&*file).expect("it is ELF");
    let symbols = file.dynamic_symbols().filter(|symbol| symbol.is_definition());
    symbols.filter_map(|symbol| symbol.name().ok().map(str::to_owned)).collect()
}

/// Names that real libraries export, by release.
const RELEASES: [(&str, &str); 9] = [
    ("NCCL 2.16.5", include_str!("../../nccl-abi/tests/symbols/nccl-2.16.5.txt")),
    ("NCCL 2.18.3", include_str!("../../nccl-abi/tests/symbols/nccl-2.18.3.txt")),
    ("NCCL 2.21.5", include_str!("../../nccl-abi/tests/symbols/nccl-2.21.5.txt")),
    ("NCCL 2.25.1", include_str!("../../nccl-abi/tests/symbols/nccl-2.25.1.txt")),
    ("NCCL 2.28.9", include_str!("../../nccl-abi/tests/symbols/nccl-2.28.9.txt")),
    ("NCCL 2.31.2", include_str!("../../nccl-abi/tests/symbols/nccl-2.31.2.txt")),
    ("NCCL 2.32.3", include_str!("../../nccl-abi/tests/symbols/nccl-2.32.3.txt")),
    ("RCCL 2.13.4", include_str!("../../nccl-abi/tests/symbols/rccl-2.13.4.txt")),
    ("RCCL 2.27.7", include_str!("../../nccl-abi/tests/symbols/rccl-2.27.7.txt")),
];

#[test]
fn it_exports_what_every_release_does() {
    let exports = exports();
    for (release, list) in RELEASES {
        let missing: Vec<_> = list.lines().filter(|name| !exports.contains(*name)).collect();
        assert!(missing.is_empty(), "{release} has, the mock lacks: {missing:?}");
    }
}

#[test]
fn functions_of_nccl_have_their_profiling_twins() {
    let exports = exports();
    let (_, newest) = RELEASES[6];
    let twinned = newest.lines().filter(|name| *name != "ncclResetDebugInitInternal");
    let missing: Vec<_> = twinned.filter(|name| !exports.contains(&format!("p{name}"))).collect();
    assert!(missing.is_empty(), "without a twin: {missing:?}");
    // 73 functions of nccl.h and 23 of the device headers, each twice; and the one without a twin.
    let count = |prefix: &str| {
        newest.lines().filter(|name| exports.contains(&format!("{prefix}{name}"))).count()
    };
    assert_eq!((count(""), count("p")), (97, 96));
}

#[test]
fn it_exports_nothing_of_rust() {
    let foreign =
        exports().into_iter().filter(|name| name.starts_with("_R") || name.contains("rust"));
    assert_eq!(foreign.collect::<Vec<_>>(), Vec::<String>::new());
}

#[test]
fn the_loader_finds_every_function() {
    let library = Library::load_from(Vendor::NCCL, library()).expect("it opens");
    let lacks = library.table().missing_optional();
    assert!(lacks.is_empty(), "{:?}", lacks.iter().map(|symbol| symbol.name()).collect::<Vec<_>>());
    assert_eq!(library.version(), 23203);
    let mut id = ncclUniqueId::ZERO;
    // SAFETY: the id outlives the call.
    let result = unsafe { (library.table().get_unique_id)(&mut id) };
    assert_eq!(result, ncclResult_t::SUCCESS);
    assert_ne!(id, ncclUniqueId::ZERO);
}

#[test]
fn the_table_in_the_process_has_the_same_functions() {
    let table: &Table = &collectives_mock_abi::nccl::TABLE;
    assert!(table.missing_optional().is_empty());
}

/// Runs [`child`] in a process of its own, as the environment is read once.
fn run_child(variables: &[(&str, &str)]) -> Output {
    run("child", variables)
}

/// Runs an ignored test of this file in a process of its own.
fn run(test: &str, variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env::current_exe().expect("a test has a path"));
    command.args(["--exact", test, "--ignored", "--nocapture"]);
    for name in ["NCCL_DEBUG", "NCCL_DEBUG_SUBSYS", "NCCL_DEBUG_FILE", "COLLECTIVES_MOCK_VERSION"] {
        command.env_remove(name);
    }
    command.envs(variables.iter().copied()).output().expect("the test runs itself")
}

#[test]
#[ignore = "a part of other tests, which run it with their own environment"]
fn child() {
    use collectives_nccl_abi::{ncclComm_t, ncclDataType_t, ncclRedOp_t};
    let table = &collectives_mock_abi::nccl::TABLE;
    let (mut version, mut id, mut comm) = (0, ncclUniqueId::ZERO, ncclComm_t::NULL);
    // SAFETY, for all: what pointers point to outlives the calls.
    let done = |result: ncclResult_t| assert_eq!(result, ncclResult_t::SUCCESS);
    // SAFETY: see above.
    done(unsafe { (table.get_version)(&mut version) });
    println!("version {version}");
    // SAFETY: see above.
    done(unsafe { (table.get_unique_id)(&mut id) });
    // SAFETY: see above.
    done(unsafe { (table.comm_init_rank)(&mut comm, 1, id, 0) });
    let (send, mut recv) = (5_i32, 0_i32);
    let (from, to) = ((&raw const send).cast(), (&raw mut recv).cast());
    let (dtype, op) = (ncclDataType_t::INT32, ncclRedOp_t::SUM);
    let stream = std::ptr::null_mut();
    // SAFETY: see above.
    done(unsafe { (table.all_reduce)(from, to, 1, dtype, op, comm, stream) });
    // SAFETY: see above.
    done(unsafe { (table.comm_destroy)(comm) });
    println!("result {recv}");
}

#[test]
fn the_version_is_what_the_environment_says() {
    for (asked, told) in
        [("2.18.3", "version 21803"), ("rccl-2.27.7", "version 22707"), ("2.8.4", "version 2804")]
    {
        let output = run_child(&[("COLLECTIVES_MOCK_VERSION", asked)]);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains(told), "{asked}: {output:?}");
    }
    let output = run_child(&[("COLLECTIVES_MOCK_VERSION", "latest")]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("COLLECTIVES_MOCK_VERSION is 'latest'"), "{output:?}");
}

#[test]
fn a_log_has_nccls_lines() {
    let output = run_child(&[("NCCL_DEBUG", "INFO"), ("NCCL_DEBUG_SUBSYS", "INIT,COLL")]);
    let text = String::from_utf8_lossy(&output.stdout);
    let has =
        |parts: &[&str]| text.lines().any(|line| parts.iter().all(|part| line.contains(part)));
    assert!(has(&["NCCL version 2.32.3+mock"]), "{text}");
    assert!(
        has(&["[0] NCCL INFO ncclCommInitRank comm 0x", "rank 0 nranks 1", "Init START"]),
        "{text}"
    );
    assert!(
        has(&["[0] NCCL INFO ncclCommInitRank comm 0x", "busId 1000", "Init COMPLETE"]),
        "{text}"
    );
    let enqueue =
        ["NCCL INFO AllReduce: opCount 0 sendbuff 0x", "count 1 datatype 2 op 0 root 0 comm 0x"];
    assert!(has(&enqueue), "{text}");
    assert!(has(&["[nranks=1] stream (nil)"]), "{text}");
    assert!(text.contains("result 5"), "{text}");
}

#[test]
fn a_log_is_silent_unless_asked_for_and_goes_to_a_file() {
    let output = run_child(&[]);
    assert!(!String::from_utf8_lossy(&output.stdout).contains("NCCL "), "{output:?}");

    let output = run_child(&[("NCCL_DEBUG", "VERSION")]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("NCCL version 2.32.3") && !text.contains("INFO"), "{text}");

    let folder = tempfile::tempdir().expect("a folder");
    let pattern = folder.path().join("log.%h.%p").display().to_string();
    let output = run_child(&[("NCCL_DEBUG", "INFO"), ("NCCL_DEBUG_FILE", &pattern)]);
    assert!(!String::from_utf8_lossy(&output.stdout).contains("NCCL INFO"), "{output:?}");
    let files: Vec<_> = fs::read_dir(folder.path()).expect("it is there").flatten().collect();
    let text = fs::read_to_string(files[0].path()).expect("one log");
    assert!(files.len() == 1 && text.contains("Init COMPLETE"), "{text}");
    // The subsystem of enqueues is not among those that are on by default.
    assert!(!text.contains("opCount"), "{text}");
}

#[test]
#[ignore = "a part of another test, which runs it with its own environment"]
fn child_with_two_types() {
    use collectives_nccl_abi::{ncclComm_t, ncclDataType_t};
    let table = &collectives_mock_abi::nccl::TABLE;
    let mut comms = [ncclComm_t::NULL; 2];
    let init_all = table.comm_init_all.expect("the mock has every function");
    // SAFETY, for all: what pointers point to outlives the calls and the wait.
    // SAFETY: see above.
    let result = unsafe { init_all(comms.as_mut_ptr(), 2, std::ptr::null()) };
    assert_eq!(result, ncclResult_t::SUCCESS);
    // The same bytes, as one integer and as four.
    let (source, mut target) = (0x0403_0201_i32, [0_i8; 4]);
    let (from, to) = ((&raw const source).cast(), target.as_mut_ptr().cast());
    let null = std::ptr::null_mut();
    let (int32, int8) = (ncclDataType_t::INT32, ncclDataType_t::INT8);
    // SAFETY: see above.
    let _ = unsafe { (table.send)(from, 1, int32, 1, comms[0], null) };
    // SAFETY: see above.
    let _ = unsafe { (table.recv)(to, 4, int8, 0, comms[1], null) };
    for comm in comms {
        let abort = table.comm_abort.expect("the mock has every function");
        // SAFETY: see above.
        let _ = unsafe { abort(comm) };
    }
    println!("received {target:?}");
}

#[test]
fn what_nccl_only_moves_is_bytes_to_it_and_to_a_mock_that_is_not_strict() {
    let received = |variables: &[(&str, &str)]| {
        let output = run("child_with_two_types", variables);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{output:?}");
        text.lines().find_map(|line| Some(line.split_once("received ")?.1.to_owned()))
    };
    assert_eq!(received(&[("COLLECTIVES_MOCK_STRICT", "0")]).as_deref(), Some("[1, 2, 3, 4]"));
    assert_eq!(received(&[]).as_deref(), Some("[0, 0, 0, 0]"));
}
