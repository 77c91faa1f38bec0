//! The loader, on files and environments made for it; the libraries are compiled by `cc`.

#![cfg(target_os = "linux")]

use std::collections::HashMap;
use std::ffi::{CString, OsString, c_int};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr;

use collectives_nccl_abi::search::candidates;
use collectives_nccl_abi::{
    Environment, Library, LoadError, Refusal, Source, Table, Vendor, inspect, loaded_copies,
    ncclResult_t,
};
use tempfile::TempDir;

/// Compiles the stub library to `path`.
fn build(path: &Path, arguments: &[&str]) {
    fs::create_dir_all(path.parent().expect("a file in a folder")).expect("its folder");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stub/nccl.c");
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .arg(path)
        .arg(source)
        .args(arguments)
        .status()
        .expect("a C compiler, as CONTRIBUTING.md asks for");
    assert!(status.success(), "cc {arguments:?}: {status}");
}

/// A folder with a stub library of this name, which tells version 2.27.3.
fn stub(name: &str) -> (TempDir, PathBuf) {
    let folder = TempDir::new().expect("a temporary folder");
    let path = folder.path().join(name);
    build(&path, &["-DVERSION=22703"]);
    (folder, path)
}

/// An environment of these variables, with the file system's root in `root`.
fn environment(root: &Path, variables: &[(&str, &Path)]) -> Environment {
    let variables: HashMap<String, OsString> =
        variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect();
    Environment::closed(root, move |name| variables.get(name).cloned())
}

/// Why the one library that was asked for is refused.
fn refused(path: impl AsRef<Path>) -> LoadError {
    Library::load_from(Vendor::NCCL, path).expect_err("a library that can't be used")
}

fn refusal(error: &LoadError) -> &Refusal {
    error.attempts()[0].refusal()
}

#[test]
fn a_library_tells_what_it_is() {
    let (_folder, path) = stub("libnccl.so.2");
    let library = Library::load_from(Vendor::NCCL, &path).expect("a usable library");
    let real = path.canonicalize().expect("it exists");
    assert_eq!(library.version(), 22703);
    assert_eq!(library.path(), Some(&*real));
    assert_eq!(library.source(), Source::Explicit);
    assert_eq!(library.to_string(), format!("NCCL 2.27.3 ({})", real.display()));
    assert!(library.skipped().is_empty());
    assert_eq!(library.error_text(ncclResult_t::SYSTEM_ERROR), "a text of the stub");
    assert_eq!(library.last_error(), None);
    assert!(library.table().comm_abort.is_some());
    assert!(library.table().all_to_all.is_some(), "RCCL's spelling is an alias");
    let absent = library.table().missing_optional();
    assert_eq!(absent.len(), Table::SYMBOLS.len() - 16);
    assert!(absent.iter().any(|symbol| symbol.name() == "ncclCommSplit"));
    assert!(loaded_copies(Vendor::NCCL).contains(&real));
}

#[test]
fn a_file_tells_what_it_is_without_being_loaded() {
    let (folder, path) = stub("libnccl.so.2");
    let whole = inspect(&path).expect("a library");
    assert!(whole.missing.is_none(), "{whole:?}");
    assert_eq!((whole.version, whole.toolkit), (None, None), "a stub names no release");

    let old = folder.path().join("old/libnccl.so.2");
    build(&old, &["-DVERSION=2604", "-DWITHOUT_P2P"]);
    let missing = inspect(&old).expect("a library").missing.expect("it lacks two functions");
    let names: Vec<_> = missing.symbols().iter().map(|symbol| symbol.name()).collect();
    assert_eq!(names, ["ncclSend", "ncclRecv"]);

    let bytes = fs::read(&path).expect("the library");
    let short = folder.path().join("short.so");
    fs::write(&short, &bytes[..bytes.len() / 2]).expect("a truncated copy");
    assert!(matches!(inspect(&short), Err(Refusal::Truncated { .. })));
    assert!(matches!(inspect(&folder.path().join("none")), Err(Refusal::Missing)));
    assert!(!loaded_copies(Vendor::NCCL).iter().any(|copy| copy == &old), "it was loaded");
}

#[test]
fn one_file_is_one_library_however_it_is_spelled() {
    let (folder, path) = stub("libnccl.so.2");
    let first = Library::load_from(Vendor::NCCL, &path).expect("a usable library");
    let link = folder.path().join("linked.so");
    std::os::unix::fs::symlink(&path, &link).expect("a link");
    let hard_link = folder.path().join("libnccl.so");
    fs::hard_link(&path, &hard_link).expect("a hard link");
    for spelling in [path, folder.path().join(".").join("libnccl.so.2"), link, hard_link] {
        let again = Library::load_from(Vendor::NCCL, &spelling).expect("the same library");
        assert!(ptr::eq(first, again), "{}", spelling.display());
    }
    let as_rccl = Library::load_from(Vendor::RCCL, folder.path().join("linked.so"))
        .expect("a stand-in that speaks for both vendors");
    assert!(!ptr::eq(first, as_rccl));
    assert_eq!(as_rccl.vendor().soname, "librccl.so.1");
}

#[test]
fn two_files_are_two_libraries() {
    let (_one, first) = stub("libnccl.so.2");
    let (_two, second) = stub("libnccl.so.2");
    let first = Library::load_from(Vendor::NCCL, first).expect("a usable library");
    let second = Library::load_from(Vendor::NCCL, second).expect("a usable library");
    assert!(!ptr::eq(first, second));
    assert!(loaded_copies(Vendor::NCCL).len() >= 2);
}

#[test]
fn threads_that_open_one_file_get_one_library() {
    let (_folder, path) = stub("libnccl.so.2");
    let open = || Library::load_from(Vendor::NCCL, &path).expect("a usable library");
    let libraries: Vec<&Library> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert!(libraries.iter().all(|library| ptr::eq(*library, libraries[0])));
}

#[test]
fn a_missing_file_is_said_to_be_missing() {
    let error = refused("/no/such/folder/libnccl.so.2");
    assert!(matches!(refusal(&error), Refusal::Missing));
    assert_eq!(error.to_string(), "NCCL: /no/such/folder/libnccl.so.2: no such file");
    assert!(error.demanded().is_some());
}

#[test]
fn a_folder_is_no_library() {
    let folder = TempDir::new().expect("a temporary folder");
    assert!(matches!(refusal(&refused(folder.path())), Refusal::Directory));
}

#[test]
fn a_pipe_is_refused_without_waiting_for_its_writer() {
    let folder = TempDir::new().expect("a temporary folder");
    let path = folder.path().join("libnccl.so.2");
    let name = CString::new(path.as_os_str().as_bytes()).expect("no NUL in it");
    // SAFETY: the name ends in a NUL and outlives the call.
    let code = unsafe { libc::mkfifo(name.as_ptr(), 0o600) };
    assert_eq!(code, 0, "{}", std::io::Error::last_os_error());
    assert!(matches!(refusal(&refused(&path)), Refusal::NotAFile));
}

#[test]
fn an_unreadable_path_says_why() {
    // A loop of links is unreadable to every user, root included.
    let folder = TempDir::new().expect("a temporary folder");
    let path = folder.path().join("libnccl.so.2");
    std::os::unix::fs::symlink(&path, &path).expect("a link to itself");
    let error = refused(&path);
    assert!(matches!(refusal(&error), Refusal::Unreadable(_)), "{error}");
    assert!(std::error::Error::source(&error).is_some());
}

#[test]
fn files_that_are_no_libraries_are_told_apart() {
    let folder = TempDir::new().expect("a temporary folder");
    let path = folder.path().join("libnccl.so.2");
    for (content, message) in [
        (&b""[..], "not an ELF shared library: the file is empty"),
        (b"hello", "not an ELF shared library"),
        (b"\x7fE", "not an ELF shared library"),
        (
            b"/* GNU ld script */\nINPUT(libnccl.so.2)",
            "not an ELF shared library but a linker script; give the file that it names",
        ),
        (b"version https://git-lfs.github.com/spec/v1\n", "not an ELF shared library"),
    ] {
        fs::write(&path, content).expect("a file");
        let error = refused(&path).to_string();
        assert_eq!(error, format!("NCCL: {}: {message}", path.display()));
    }
}

#[test]
fn a_truncated_library_is_an_error_and_not_the_end_of_the_process() {
    let (folder, whole) = stub("whole.so");
    let whole = fs::read(whole).expect("it exists");
    let path = folder.path().join("libnccl.so.2");
    for size in [5, 20, 63, 64, 100, 1000, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..size]).expect("a file");
        let error = refused(&path);
        let Refusal::Truncated { size: found, wanted } = refusal(&error) else {
            panic!("{size} of {} bytes: {error}", whole.len());
        };
        assert_eq!(*found, size as u64);
        assert!(*wanted > *found);
    }
    fs::write(&path, &whole).expect("a file");
    Library::load_from(Vendor::NCCL, &path).expect("whole again");
}

#[test]
fn a_truncated_library_on_the_loaders_path_is_not_touched() {
    let (folder, whole) = stub("whole.so");
    let whole = fs::read(whole).expect("it exists");
    for name in [Vendor::RCCL.soname, Vendor::RCCL.dev_name] {
        fs::write(folder.path().join(name), &whole[..whole.len() / 2]).expect("a file");
    }
    let environment =
        environment(folder.path(), &[("LD_LIBRARY_PATH", folder.path())]).with_bare_names();
    let error = Library::load_in(Vendor::RCCL, &environment).expect_err("nothing usable");
    let refusals: Vec<_> =
        error.attempts().iter().map(|attempt| (attempt.source(), attempt.refusal())).collect();
    assert!(
        matches!(
            refusals[..],
            [
                (Source::AlreadyLoaded, Refusal::NotLoaded),
                (Source::Soname, Refusal::Truncated { .. }),
                (Source::DevName, Refusal::Truncated { .. }),
            ]
        ),
        "{refusals:?}"
    );
}

#[test]
fn a_library_for_another_machine_is_named() {
    let (folder, whole) = stub("whole.so");
    let whole = fs::read(whole).expect("it exists");
    let path = folder.path().join("libnccl.so.2");
    let patched = |offset: usize, byte: u8| {
        let mut bytes = whole.clone();
        bytes[offset] = byte;
        fs::write(&path, bytes).expect("a file");
        refused(&path)
    };
    const CLASS: usize = 4;
    const TYPE: usize = 16;
    const MACHINE: usize = 18;
    let (other, name) =
        if cfg!(target_arch = "x86_64") { (183, "aarch64") } else { (62, "x86_64") };

    let error = patched(MACHINE, other);
    assert!(
        matches!(refusal(&error), Refusal::WrongMachine { found, .. } if found == name),
        "{error}"
    );
    let error = patched(CLASS, 1);
    assert!(
        matches!(refusal(&error), Refusal::WrongMachine { found, .. } if found.contains("32-bit")),
        "{error}"
    );
    // An object file, and an executable.
    for kind in [1, 2] {
        let error = patched(TYPE, kind);
        assert!(matches!(refusal(&error), Refusal::NotALibrary(_)), "{error}");
    }
}

#[test]
fn a_missing_dependency_is_told_in_the_loaders_words() {
    let folder = TempDir::new().expect("a temporary folder");
    let dependency = folder.path().join("libgone.so");
    build(&dependency, &["-DVERSION=1"]);
    let path = folder.path().join("libnccl.so.2");
    build(&path, &["-DVERSION=22703", "-Wl,--no-as-needed", &dependency.to_string_lossy()]);
    fs::remove_file(&dependency).expect("it exists");
    let error = refused(&path);
    assert!(
        matches!(refusal(&error), Refusal::Loader(text) if text.contains("libgone.so")),
        "{error}"
    );
}

#[test]
fn another_library_is_asked_whether_it_is_one() {
    let error = refused("libm.so.6");
    let Refusal::MissingSymbols(missing) = refusal(&error) else { panic!("{error}") };
    assert_eq!(missing.symbols().len(), 14);
    let text = error.to_string();
    assert!(text.starts_with("NCCL: libm.so.6: lacks ncclGetVersion, "), "{text}");
    assert!(text.ends_with("; is this an NCCL library?"), "{text}");
}

#[test]
fn a_library_that_is_too_old_says_which_would_do() {
    let folder = TempDir::new().expect("a temporary folder");
    let path = folder.path().join("libnccl.so.2");
    build(&path, &["-DVERSION=2604", "-DWITHOUT_P2P"]);
    let error = refused(&path);
    assert_eq!(
        error.to_string(),
        format!(
            "NCCL: {}: lacks ncclSend, ncclRecv; needs NCCL 2.7.3 or RCCL 2.7.6, or newer",
            path.display()
        )
    );
}

#[test]
fn a_library_that_cannot_tell_its_version_is_refused() {
    let folder = TempDir::new().expect("a temporary folder");
    let path = folder.path().join("libnccl.so.2");
    build(&path, &["-DVERSION=0", "-DVERSION_RESULT=3"]);
    let error = refused(&path);
    assert!(matches!(refusal(&error), Refusal::Version(ncclResult_t::INTERNAL_ERROR)), "{error}");
}

#[test]
fn the_other_vendors_library_is_refused() {
    let (_folder, path) = stub("librccl.so.1");
    assert!(matches!(refusal(&refused(&path)), Refusal::OtherVendor(_)));
    Library::load_from(Vendor::RCCL, &path).expect("its own vendor takes it");
}

#[test]
fn a_variable_that_points_nowhere_is_an_error_at_once() {
    let (folder, path) = stub("cuda/lib/libnccl.so.2");
    let cuda = folder.path().join("cuda");
    let nowhere = Path::new("/no/such/libnccl.so.2");
    for variable in Vendor::NCCL.path_variables {
        let environment = environment(folder.path(), &[("CUDA_HOME", &cuda), (variable, nowhere)]);
        let error = Library::load_in(Vendor::NCCL, &environment).expect_err("a demand that fails");
        assert_eq!(error.attempts().len(), 1);
        assert_eq!(
            error.to_string(),
            format!(
                "NCCL: {variable}=/no/such/libnccl.so.2: no such file; correct the variable, or \
                 unset it to search"
            )
        );
    }
    let environment = environment(
        folder.path(),
        &[("CUDA_HOME", &cuda), ("COLLECTIVES_NCCL_PATH", Path::new(""))],
    );
    let library = Library::load_in(Vendor::NCCL, &environment).expect("an empty one is unset");
    assert_eq!(library.source(), Source::VendorRoot);
    assert_eq!(library.path(), path.canonicalize().ok().as_deref());
}

#[test]
fn variables_are_asked_in_order() {
    let (folder, path) = stub("mine.so");
    let nowhere = Path::new("/no/such/libnccl.so.2");
    let environment = environment(
        folder.path(),
        &[
            ("VLLM_NCCL_SO_PATH", nowhere),
            ("SGLANG_NCCL_SO_PATH", nowhere),
            ("COLLECTIVES_NCCL_PATH", &path),
            ("COLLECTIVES_RCCL_PATH", nowhere),
        ],
    );
    let library = Library::load_in(Vendor::NCCL, &environment).expect("the first one");
    assert_eq!(library.source(), Source::EnvVar("COLLECTIVES_NCCL_PATH"));
    let error = Library::load_in(Vendor::RCCL, &environment).expect_err("the other vendor's");
    assert_eq!(
        error.demanded().map(|attempt| attempt.source()),
        Some(Source::EnvVar("COLLECTIVES_RCCL_PATH"))
    );
}

#[test]
fn candidates_come_in_the_documented_order() {
    let folder = TempDir::new().expect("a temporary folder");
    let root = folder.path();
    let create = |path: &str| {
        let path = root.join(path);
        fs::create_dir_all(&path).expect("a folder");
        path
    };
    let venv = create("venv");
    create("venv/lib/python3.12/site-packages/nvidia/nccl/lib");
    create("venv/lib/python3.12/site-packages/nvidia/cu13/lib");
    create("venv/lib/python3.12/site-packages/nvidia/cu9/lib");
    create("venv/lib/python3.12/site-packages/torch/lib");
    let conda = create("conda");
    create("conda/lib/python3.11/site-packages/nvidia/nccl/lib");
    let bin = create("prefix/bin");
    fs::write(bin.join("python3"), "").expect("a file");
    create("prefix/lib/python3/dist-packages/torch/lib");
    let home = create("home");
    create("home/.local/lib/python3.11/site-packages/nvidia/nccl/lib");
    let cuda = create("cuda");
    create("cuda/lib64");
    create("usr/local/cuda/lib64");
    let environment = environment(
        root,
        &[
            ("VIRTUAL_ENV", &venv),
            ("CONDA_PREFIX", &conda),
            ("PATH", &bin),
            ("HOME", &home),
            ("CUDA_HOME", &cuda),
        ],
    )
    .with_bare_names();
    let found: Vec<_> = candidates(Vendor::NCCL, &environment)
        .into_iter()
        .map(|candidate| {
            let target = candidate.target.strip_prefix(root).unwrap_or(&candidate.target);
            (candidate.source, target.display().to_string())
        })
        .collect();
    let expected = [
        (Source::AlreadyLoaded, "libnccl.so.2"),
        (Source::Soname, "libnccl.so.2"),
        (Source::PythonPackages, "venv/lib/python3.12/site-packages/nvidia/nccl/lib/libnccl.so.2"),
        (Source::PythonPackages, "venv/lib/python3.12/site-packages/nvidia/cu13/lib/libnccl.so.2"),
        (Source::PythonPackages, "venv/lib/python3.12/site-packages/nvidia/cu9/lib/libnccl.so.2"),
        (Source::PythonPackages, "venv/lib/python3.12/site-packages/torch/lib/libnccl.so.2"),
        (Source::PythonPackages, "conda/lib/python3.11/site-packages/nvidia/nccl/lib/libnccl.so.2"),
        (Source::PythonPackages, "prefix/lib/python3/dist-packages/torch/lib/libnccl.so.2"),
        (
            Source::PythonPackages,
            "home/.local/lib/python3.11/site-packages/nvidia/nccl/lib/libnccl.so.2",
        ),
        (Source::PythonPackages, "conda/lib/libnccl.so.2"),
        (Source::VendorRoot, "cuda/lib64/libnccl.so.2"),
        (Source::VendorRoot, "usr/local/cuda/lib64/libnccl.so.2"),
        (Source::DevName, "libnccl.so"),
    ]
    .map(|(source, target)| (source, target.to_owned()));
    assert_eq!(found, expected);
}

#[test]
fn the_newest_rocm_is_tried_first() {
    let folder = TempDir::new().expect("a temporary folder");
    for version in ["rocm-6.4.1", "rocm-10.0", "rocm-7.2"] {
        fs::create_dir_all(folder.path().join("opt").join(version).join("lib")).expect("a folder");
    }
    let environment = environment(folder.path(), &[]);
    let found: Vec<_> = candidates(Vendor::RCCL, &environment)
        .into_iter()
        .map(|candidate| candidate.target)
        .collect();
    let path = |version: &str| folder.path().join("opt").join(version).join("lib/librccl.so.1");
    assert_eq!(found, ["rocm-10.0", "rocm-7.2", "rocm-6.4.1"].map(path));
}

#[test]
fn a_search_goes_on_after_a_broken_library_and_remembers_it() {
    let (folder, path) = stub("cuda/lib64/libnccl.so.2");
    let packages = folder.path().join("venv/lib/python3.12/site-packages/nvidia/nccl/lib");
    fs::create_dir_all(&packages).expect("a folder");
    fs::write(packages.join("libnccl.so.2"), "").expect("an empty file");
    let environment = environment(
        folder.path(),
        &[("VIRTUAL_ENV", &folder.path().join("venv")), ("CUDA_HOME", &folder.path().join("cuda"))],
    );
    let library = Library::load_in(Vendor::NCCL, &environment).expect("the toolkit's");
    assert_eq!(library.source(), Source::VendorRoot);
    assert_eq!(library.path(), path.canonicalize().ok().as_deref());
    assert_eq!(library.skipped().len(), 1);
    assert_eq!(library.skipped()[0].target(), packages.join("libnccl.so.2"));
}

#[test]
fn a_search_that_finds_nothing_lists_what_it_tried() {
    let folder = TempDir::new().expect("a temporary folder");
    let lib = folder.path().join("cuda/lib64");
    fs::create_dir_all(&lib).expect("a folder");
    fs::create_dir_all(folder.path().join("cuda/lib")).expect("a folder");
    fs::write(lib.join("libnccl.so.2"), "").expect("an empty file");
    let environment = environment(folder.path(), &[("CUDA_HOME", &folder.path().join("cuda"))]);
    let error = Library::load_in(Vendor::NCCL, &environment).expect_err("nothing usable");
    assert!(error.demanded().is_none());
    assert_eq!(
        error.to_string(),
        format!(
            "NCCL: no usable library: tried {lib}64/libnccl.so.2 (not an ELF shared library: the \
             file is empty), {lib}/libnccl.so.2 (no such file); {}",
            Vendor::NCCL.advice,
            lib = folder.path().join("cuda/lib").display(),
        )
    );
}

#[test]
fn a_copy_in_the_process_is_shared() {
    let folder = TempDir::new().expect("a temporary folder");
    let path = folder.path().join("anything.so");
    build(&path, &["-DVERSION=22809", "-Wl,-soname,libnccl.so.2"]);
    // SAFETY: the stub has no initialisers.
    let opened = unsafe { libloading::os::unix::Library::new(&path) }.expect("a usable library");
    let environment = environment(folder.path(), &[]).with_bare_names();
    let library = Library::load_in(Vendor::NCCL, &environment).expect("the copy in the process");
    assert_eq!(library.source(), Source::AlreadyLoaded);
    assert_eq!(library.path(), path.canonicalize().ok().as_deref());
    assert_eq!(library.version(), 22809);
    drop(opened);
    assert_eq!(library.error_text(ncclResult_t::SUCCESS), "no error", "it stays open");
}

#[test]
fn a_table_needs_no_file() {
    let (_folder, path) = stub("libnccl.so.2");
    let opened = Library::load_from(Vendor::NCCL, path).expect("a usable library");
    // SAFETY: the functions of an open library.
    let library =
        unsafe { Library::from_table(Vendor::NCCL, *opened.table()) }.expect("it has a version");
    assert!(!ptr::eq(opened, library));
    assert_eq!((library.version(), library.path()), (22703, None));
    assert_eq!(library.source(), Source::Table);
    assert_eq!(library.to_string(), "NCCL 2.27.3 (built in)");

    extern "C" fn no_version(_: *mut c_int) -> ncclResult_t {
        ncclResult_t(42)
    }
    let table = Table { get_version: no_version, ..*opened.table() };
    // SAFETY: as above, and the other function has its own signature.
    let error = unsafe { Library::from_table(Vendor::NCCL, table) }.expect_err("it has none");
    assert_eq!(
        error.to_string(),
        "NCCL: function table: ncclGetVersion answered ncclResult_t(42); is this an NCCL library?"
    );
}
