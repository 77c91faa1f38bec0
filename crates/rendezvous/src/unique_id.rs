//! A unique id without a store: in a file or a variable, in base64.
//!
//! That is vLLM's convention for peers without torch. As an argument it needs nothing from here:
//! [`UniqueId`] reads and writes base64 itself.

use std::{env, ffi::OsString, fs, io, path::Path, process, time::Duration};

use collectives_core::{Error, ErrorKind, Result, UniqueId};

use crate::{Deadline, deadline::Pauses};

/// Reads the id in the variable `name`; `None` where it is not set.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`] where it is no base64.
pub fn from_variable(name: &str) -> Result<Option<UniqueId>> {
    let Some(text) = env::var_os(name) else { return Ok(None) };
    let text = text.to_string_lossy();
    text.parse().map(Some).map_err(|error: Error| named(format!("variable {name}"), error))
}

/// Writes the id into a file, all at once: who reads it finds all of it or nothing.
///
/// # Errors
/// [`ErrorKind::System`] where the file cannot be written.
pub fn to_file(id: &UniqueId, path: &Path) -> Result<()> {
    // Beside it, because only within one file system a rename is atomic.
    let mut name = path.file_name().map_or_else(OsString::new, OsString::from);
    name.push(format!(".{}", process::id()));
    let partial = path.with_file_name(name);
    fs::write(&partial, id.to_base64()).and_then(|()| fs::rename(&partial, path)).map_err(|error| {
        let message = format!("unique id cannot be written to {}: {error}", path.display());
        Error::new(ErrorKind::System, message).with_poison(false).with_source(error)
    })
}

/// Waits for the file, and reads the id in it.
///
/// A file of an earlier run would be taken for this one's. So give each run a path of its own, by
/// [`Environment::job`](crate::Environment::job), or remove the file first.
///
/// # Errors
/// [`ErrorKind::Timeout`] where it does not appear, [`ErrorKind::InvalidArgument`] where it holds no
/// base64, [`ErrorKind::System`] where it cannot be read.
pub fn from_file(path: &Path, deadline: Deadline) -> Result<UniqueId> {
    let mut pauses = Pauses::new(Duration::from_millis(1), Duration::from_millis(50));
    let text = loop {
        match fs::read_to_string(path) {
            Ok(text) if !text.trim().is_empty() => break text,
            // Others make the file first, and write then.
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let message = format!("unique id cannot be read from {}: {error}", path.display());
                return Err(Error::new(ErrorKind::System, message)
                    .with_poison(false)
                    .with_source(error));
            }
        }
        if !pauses.sleep(deadline) {
            let message = format!(
                "unique id: {} did not appear within {:?}",
                path.display(),
                deadline.given()
            );
            return Err(Error::new(ErrorKind::Timeout, message)
                .with_hint("see whether rank 0 runs, and whether both see the same folder"));
        }
    };
    text.parse().map_err(|error: Error| named(format!("file {}", path.display()), error))
}

fn named(place: String, error: Error) -> Error {
    Error::new(error.kind(), format!("{place}: {}", error.message())).with_source(error)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_file_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("id");
        let error = from_file(&path, Deadline::after(Duration::from_millis(5))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout);
        assert!(error.to_string().contains("did not appear within 5ms"), "{error}");

        let id = UniqueId::from([9; 128]);
        thread::scope(|scope| {
            let reader = scope.spawn(|| from_file(&path, Deadline::after(Duration::from_secs(30))));
            to_file(&id, &path).unwrap();
            assert_eq!(reader.join().unwrap().unwrap(), id);
        });
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_id_names_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("id");
        fs::write(&path, "no id").unwrap();
        let error = from_file(&path, Deadline::after(Duration::ZERO)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains("id: unique id is not base64"), "{error}");
        assert_eq!(from_variable("COLLECTIVES_SURELY_NOT_SET").unwrap(), None);
    }
}
