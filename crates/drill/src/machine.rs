//! What is left on the machine.

use std::{
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

/// Used memory of each GPU in MiB; `None` without NVIDIA's tool, or a GPU.
pub(crate) fn gpu_memory() -> Option<Vec<u64>> {
    let mut tool = Command::new("nvidia-smi");
    let output =
        tool.args(["--query-gpu=memory.used", "--format=csv,noheader,nounits"]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok().filter(|_| output.status.success())?;
    text.lines().map(|line| line.trim().parse().ok()).collect()
}

/// Used memory once it has come down to `before`, or has not within a while.
pub(crate) fn gpu_memory_after(before: &[u64]) -> Option<Vec<u64>> {
    let until = Instant::now() + SETTLE;
    loop {
        let now = gpu_memory()?;
        if leaked(before, &now).is_none() || Instant::now() > until {
            return Some(now);
        }
        thread::sleep(Duration::from_millis(200));
    }
}

/// What is left on a GPU, in words.
pub(crate) fn leaked(before: &[u64], after: &[u64]) -> Option<String> {
    let more = |&(_, (before, after)): &(usize, (&u64, &u64))| *after > before + TOLERANCE;
    let (gpu, (before, after)) = before.iter().zip(after).enumerate().find(more)?;
    Some(format!("GPU {gpu} had {before} MiB in use before, and has {after} MiB after"))
}

/// Whether a process is there, be it a zombie.
pub(crate) fn exists(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

/// Files that NCCL has left in shared memory.
pub(crate) fn shared_memory() -> usize {
    let Ok(files) = fs::read_dir("/dev/shm") else { return 0 };
    files.flatten().filter(|file| file.file_name().to_string_lossy().starts_with("nccl-")).count()
}

/// In MiB: what the driver itself takes and gives back is less.
const TOLERANCE: u64 = 16;
/// For how long the driver may go on freeing what a killed process had.
const SETTLE: Duration = Duration::from_secs(10);
