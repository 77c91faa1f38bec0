//! Programs that end, one way or another.

use std::{
    fmt,
    fs::File,
    io::{Read, Seek},
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use wait_timeout::ChildExt;

/// Why a run has no figures.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Failure {
    /// It ended otherwise than well, or did not start.
    Ended(String),
    /// It was ended, having run this long.
    TimedOut(Duration),
    /// Its output is not as agreed on.
    Unreadable(String),
    /// It computed wrong results.
    WrongData(String),
}

impl Failure {
    /// Whether figures which the same side gave before cannot be trusted either. A program that
    /// fails may have failed over its results: those that check them end so.
    pub(crate) const fn taints(&self) -> bool {
        !matches!(self, Self::TimedOut(_))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended(how) => f.write_str(how),
            Self::TimedOut(limit) => write!(f, "ended after {} s without result", limit.as_secs()),
            Self::Unreadable(what) => write!(f, "unreadable: {what}"),
            Self::WrongData(what) => write!(f, "wrong data: {what}"),
        }
    }
}

/// Runs a program to its end, or ends it and what it started after `limit`. Answers its standard
/// output.
pub(crate) fn run(command: &mut Command, limit: Duration) -> Result<String, Failure> {
    let program = command.get_program().to_string_lossy().into_owned();
    let cannot = |error: std::io::Error| Failure::Ended(format!("{program}: {error}"));
    // Files, not pipes: what nobody reads in time does not stop the program.
    let (mut out, mut err) =
        (tempfile::tempfile().map_err(cannot)?, tempfile::tempfile().map_err(cannot)?);
    command.stdin(Stdio::null());
    command.stdout(out.try_clone().map_err(cannot)?).stderr(err.try_clone().map_err(cannot)?);
    // A group of its own, so that the ranks that a launcher started end with it.
    let mut child = command.process_group(0).spawn().map_err(cannot)?;
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);

    let mut ended = child.wait_timeout(limit).map_err(cannot)?;
    let in_time = ended.is_some();
    // Launchers end their ranks when they are asked to end; what does not listen is killed.
    for signal in [Signal::TERM, Signal::KILL] {
        if ended.is_none()
            && let Some(group) = group
        {
            // It fails only if the group is gone.
            let _ = kill_process_group(group, signal);
            ended = child.wait_timeout(GRACE).map_err(cannot)?;
        }
    }
    if let Some(group) = group {
        // Ranks that outlived their launcher.
        let _ = kill_process_group(group, Signal::KILL);
    }
    match ended {
        Some(status) if in_time && status.success() => text(&mut out).map_err(cannot),
        Some(status) if in_time => {
            let said = [text(&mut err), text(&mut out)].map(Result::unwrap_or_default);
            let said = said.iter().map(|text| last_lines(text)).find(|text| !text.is_empty());
            let said = said.map(|text| format!(": {text}")).unwrap_or_default();
            Err(Failure::Ended(format!("{program} ended with {status}{said}")))
        }
        _ => Err(Failure::TimedOut(limit)),
    }
}

/// Where a program of this name is, as a shell would find it.
pub(crate) fn find(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// All that was written to a file, whatever it is.
fn text(file: &mut File) -> std::io::Result<String> {
    file.rewind()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The last lines that say something, in one.
fn last_lines(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(SAID)..].join(" | ")
}

/// Between asking a program to end and killing it.
const GRACE: Duration = Duration::from_secs(5);

/// How many lines of a failed program are kept.
const SAID: usize = 4;

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn sh(script: &str, limit: Duration) -> Result<String, Failure> {
        run(Command::new("sh").args(["-c", script]), limit)
    }

    #[test]
    fn output_is_what_a_good_run_said() {
        assert_eq!(sh("echo out; echo err >&2", LONG), Ok("out\n".into()));
        // More than a pipe holds.
        let much = sh("yes | head -c 1000000", LONG).expect("output");
        assert_eq!(much.len(), 1_000_000);
    }

    #[test]
    fn a_failed_run_says_how_it_ended_and_what_it_said() {
        let failure = sh("echo out; printf 'a\\n\\nb\\n' >&2; exit 3", LONG);
        assert_eq!(failure, Err(Failure::Ended("sh ended with exit status: 3: a | b".into())));
        let silent = sh("echo out; exit 1", LONG);
        assert_eq!(silent, Err(Failure::Ended("sh ended with exit status: 1: out".into())));
        let missing = run(&mut Command::new("/no/such/program"), LONG).expect_err("missing");
        assert!(missing.to_string().starts_with("/no/such/program: No such file"), "{missing}");
    }

    /// A program that would not end, and neither would what it started.
    #[test]
    fn a_late_run_ends_with_everything_it_started() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("pid");
        let script = format!("sleep 600 & echo $! > {}; wait", file.display());
        let start = Instant::now();
        let limit = Duration::from_secs(1);
        assert_eq!(sh(&script, limit), Err(Failure::TimedOut(limit)));
        assert!(start.elapsed() < Duration::from_secs(60), "the limit was 1 s");
        let pid = std::fs::read_to_string(&file).expect("the shell wrote it");
        let pid = Pid::from_raw(pid.trim().parse().expect("a number")).expect("not zero");
        // A killed process stays known until its parent takes notice.
        let gone = (0..100).any(|_| {
            std::thread::sleep(Duration::from_millis(50));
            let state = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
            state.map_or(true, |state| state.contains(") Z "))
        });
        assert!(gone, "{pid:?} lives");
    }

    #[test]
    fn programs_are_found_as_a_shell_finds_them() {
        assert!(find("sh").is_some());
        assert_eq!(find("no-such-program-anywhere"), None);
    }

    const LONG: Duration = Duration::from_secs(60);
}
