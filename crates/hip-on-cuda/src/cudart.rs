//! The CUDA runtime, found at run time.

use std::{
    env,
    error::Error as _,
    ffi::OsString,
    io::{self, Write as _},
    sync::{Once, OnceLock},
};

use libloading::Library;

use crate::conv::{HipError, Reply};

/// A function of the CUDA runtime, looked for when it is first needed.
pub(crate) struct Function<F> {
    name: &'static str,
    found: OnceLock<Option<F>>,
    missed: Once,
}

impl<F: Copy> Function<F> {
    /// Names a function.
    ///
    /// # Safety
    /// `F` is the pointer type of the function of this name in CUDA's `cuda_runtime_api.h`.
    pub(crate) const unsafe fn new(name: &'static str) -> Self {
        Self { name, found: OnceLock::new(), missed: Once::new() }
    }

    /// The function, or nothing where the CUDA runtime has none of this name or is not there.
    pub(crate) fn get(&self) -> Option<F> {
        *self.found.get_or_init(|| {
            let library = cudart()?;
            // SAFETY: `new` was promised that the type is that of the function.
            let symbol = unsafe { library.get::<F>(self.name) };
            symbol.ok().map(|symbol| *symbol)
        })
    }

    /// The function.
    ///
    /// # Errors
    /// [`HipError::NOT_SUPPORTED`] where the CUDA runtime has none of this name, and
    /// [`HipError::INSUFFICIENT_DRIVER`] where it is not there.
    pub(crate) fn find(&self) -> Reply<F> {
        self.get().ok_or_else(|| {
            if cudart().is_none() {
                return HipError::INSUFFICIENT_DRIVER;
            }
            self.missed.call_once(|| {
                say(&format!("this CUDA runtime lacks {}: not supported (code 801)", self.name));
            });
            HipError::NOT_SUPPORTED
        })
    }
}

/// The library, which is never closed: it may have threads.
fn cudart() -> Option<&'static Library> {
    static CUDART: OnceLock<Option<Library>> = OnceLock::new();
    CUDART.get_or_init(open).as_ref()
}

fn open() -> Option<Library> {
    let names = match env::var_os(CHOSEN) {
        Some(path) => vec![path],
        None => NAMES.map(OsString::from).into(),
    };
    let mut errors = String::new();
    for name in names {
        // SAFETY: what runs when a CUDA runtime is opened asks nothing of who opens it.
        match unsafe { Library::new(name) } {
            Ok(library) => return Some(library),
            // The loader's own words are the source.
            Err(error) => {
                errors += &error.source().map_or_else(|| error.to_string(), ToString::to_string);
                errors += "; ";
            }
        }
    }
    say(&format!("no CUDA runtime, so all calls fail with 35: {errors}set {CHOSEN} to its path"));
    None
}

fn say(text: &str) {
    // Nobody is left to tell where standard error is closed.
    let _ = io::stderr().write_all(format!("hip-on-cuda: {text}\n").as_bytes());
}

/// By which the loader finds it, the newest first.
const NAMES: [&str; 2] = ["libcudart.so.13", "libcudart.so.12"];
/// The file to open instead.
const CHOSEN: &str = "HIP_ON_CUDA_CUDART";
