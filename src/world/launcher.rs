//! A file in which the ranks of one host meet, where their launcher gives them no port.
//!
//! Its name must be the same on all ranks of a job, and another for every other job, also for one that
//! the same user runs at the same time. Open MPI and PMIx have a folder of the job. Elsewhere the job is
//! known by the process that started the ranks: the nearest one above that has not itself been told a
//! rank, by its process id and the time of its start. It does not matter how many shells stand between.

#[cfg(unix)]
use std::env;
use std::{
    fs, io,
    path::{Path, PathBuf},
};

use collectives_core::{Error, ErrorKind, Result};
use collectives_rendezvous::{Environment, Launcher};

/// The file of this job's meeting that is called `run`.
pub(super) fn meeting_file(environment: &Environment, run: &str) -> Result<PathBuf> {
    // Slashes and blanks would be in the way.
    let run: String =
        run.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
    if let Some(folder) = session_folder() {
        return Ok(folder.join(format!("collectives-{run}.store")));
    }
    let variable = rank_variable(environment.launcher());
    let failed = |problem: String| {
        let message = format!(
            "{} gives its ranks no port and no folder to meet, and {problem}",
            environment.launcher()
        );
        Error::new(ErrorKind::Unsupported, message)
            .with_hint("set MASTER_PORT to a free port, and MASTER_ADDR to 127.0.0.1, on all ranks")
    };
    let (pid, start) = process_above(variable)
        .ok_or_else(|| failed("which process started them cannot be told".into()))?;
    let folder = private_folder()
        .map_err(|error| failed(format!("no folder can be made for them: {error}")))?;
    if environment.rank() == 0 {
        sweep(&folder);
    }
    Ok(folder.join(format!("{pid}-{start}-{run}.store")))
}

/// That of Open MPI 4 and 5 and of PMIx, if it is the user's: it goes with the job.
#[cfg(unix)]
fn session_folder() -> Option<PathBuf> {
    use rustix::fs::{Access, access};

    let folder = PathBuf::from(env::var_os("PMIX_SERVER_TMPDIR")?);
    let usable = access(&folder, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK).is_ok();
    (folder.is_dir() && usable).then_some(folder)
}

#[cfg(not(unix))]
fn session_folder() -> Option<PathBuf> {
    None
}

/// The nearest process above this one in whose environment `variable` is not, and when it started.
fn process_above(variable: &str) -> Option<(u32, u64)> {
    let mark = format!("{variable}=");
    let (mut pid, _) = status(Path::new("/proc/self/stat"))?;
    // Not for ever, should /proc change meanwhile.
    for _ in 0..64 {
        let folder = PathBuf::from(format!("/proc/{pid}"));
        let (parent, start) = status(&folder.join("stat"))?;
        // That of another user cannot be read, and is none of the ranks.
        let environment = fs::read(folder.join("environ")).unwrap_or_default();
        let told =
            environment.split(|&byte| byte == 0).any(|pair| pair.starts_with(mark.as_bytes()));
        if !told {
            return Some((pid, start));
        }
        pid = parent;
    }
    None
}

/// Of a process, its parent and when it started, from `/proc/PID/stat`.
fn status(path: &Path) -> Option<(u32, u64)> {
    let text = fs::read_to_string(path).ok()?;
    // The second field is a name in brackets, with anything in it.
    let (_, fields) = text.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    let parent = fields.nth(1)?.parse().ok()?;
    let start = fields.nth(17)?.parse().ok()?;
    Some((parent, start))
}

/// The variable by which a launcher says which rank a process is.
fn rank_variable(launcher: Launcher) -> &'static str {
    match launcher {
        Launcher::OpenMpi => "OMPI_COMM_WORLD_RANK",
        Launcher::Mpich => "PMI_RANK",
        Launcher::Pmix => "PMIX_RANK",
        Launcher::Slurm => "SLURM_PROCID",
        _ => "RANK",
    }
}

/// A folder for temporary files that nobody else may enter.
#[cfg(unix)]
fn private_folder() -> io::Result<PathBuf> {
    use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};

    let user = rustix::process::getuid().as_raw();
    let folder = env::temp_dir().join(format!("collectives-{user}"));
    match fs::DirBuilder::new().mode(0o700).create(&folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    // It may have been somebody else who made it.
    let found = fs::symlink_metadata(&folder)?;
    if found.is_dir() && found.uid() == user && found.mode() & 0o077 == 0 {
        return Ok(folder);
    }
    let message = format!("{} is not this user's alone", folder.display());
    Err(io::Error::new(io::ErrorKind::PermissionDenied, message))
}

#[cfg(not(unix))]
fn private_folder() -> io::Result<PathBuf> {
    Err(io::Error::from(io::ErrorKind::Unsupported))
}

/// Removes what jobs left behind that were killed.
fn sweep(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let mut parts = name.split('-');
        let job = parts.next().zip(parts.next());
        let lives = job.is_some_and(|(pid, start)| {
            status(&PathBuf::from(format!("/proc/{pid}/stat")))
                .is_some_and(|(_, since)| since.to_string() == start)
        });
        if !lives {
            // Another rank 0 may have done so just now.
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::process;

    use super::*;

    #[test]
    fn who_started_this_process_is_known_by_its_start() {
        let (pid, start) = process_above("COLLECTIVES_SURELY_NOT_SET").unwrap();
        assert_eq!(pid, std::os::unix::process::parent_id());
        assert!(start > 0);
        // Whatever is set here was set above, too, if only in the shell that started it all.
        let (above, _) = process_above("PATH").unwrap_or((0, 0));
        assert_ne!(above, pid);
        assert_ne!(above, process::id());
    }
}
