//! The signals that are for the ranks.

use std::{fs, io, thread};

use rustix::process::Signal;
use signal_hook::iterator::Signals;

/// Calls `tell` for each signal that this process gets from now on, on a thread of its own.
pub(super) fn listen(tell: impl Fn(Signal) + Send + 'static) -> io::Result<()> {
    let ignored = ignored();
    let wanted = HEARD.iter().map(|signal| signal.as_raw());
    let wanted = wanted.filter(|number| ignored >> (number - 1) & 1 == 0);
    let mut signals = Signals::new(wanted)?;
    let listener = thread::Builder::new().name("signals".into());
    listener.spawn(move || {
        for number in &mut signals {
            if let Some(signal) = Signal::from_named_raw(number) {
                tell(signal);
            }
        }
    })?;
    Ok(())
}

/// Those that this process was started to ignore, as `nohup` and shells do for what is to run on: bit
/// N - 1 for signal N. None where the system does not tell.
fn ignored() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default()
}

/// Whether a signal asks for the job's end.
pub(super) fn ends(signal: Signal) -> bool {
    [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM].contains(&signal)
}

/// `SIGTERM`, or `signal 40`.
pub(super) fn name(signal: i32) -> String {
    let name = signal_hook::low_level::signal_name(signal);
    name.map_or_else(|| format!("signal {signal}"), Into::into)
}

const HEARD: [Signal; 7] = [
    Signal::HUP,
    Signal::INT,
    Signal::QUIT,
    Signal::TERM,
    Signal::TSTP,
    Signal::USR1,
    Signal::USR2,
];
