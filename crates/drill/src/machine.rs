//! What is left on the machine.

use std::{
    env,
    error::Error,
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use collectives::{AnyDevice, Backend};

/// Memory of each GPU that is in use, by whomever, in MiB. `None` on the mock, which has none.
///
/// The driver tells it to processes that have a context, so this program asks in another process, which
/// takes its context along. `nvidia-smi` shows 0 in some virtual machines, whatever is in use.
pub(crate) fn gpu_memory(backend: Option<&str>) -> Result<Option<Vec<u64>>, Box<dyn Error>> {
    let mut program = Command::new(env::current_exe()?);
    program.arg("--gpu-memory");
    if let Some(backend) = backend {
        program.env("COLLECTIVES_BACKEND", backend);
    }
    let output = program.output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("GPU memory cannot be looked at: {said}").into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The same, as this process sees it.
pub(crate) fn gpu_memory_here() -> collectives::Result<Option<Vec<u64>>> {
    let backend = collectives::backend()?;
    (0..backend.device_count()?)
        .map(|ordinal| {
            let (free, total) = match backend.device(ordinal)? {
                AnyDevice::Cuda(device) => device.memory_info()?,
                AnyDevice::Hip(device) => device.memory_info()?,
                AnyDevice::Mock(_) => return Ok(None),
            };
            Ok(Some((total.saturating_sub(free) >> 20) as u64))
        })
        .collect()
}

/// Used memory once it has come down to `before`, or has not within a while.
pub(crate) fn gpu_memory_after(
    before: &[u64],
    backend: Option<&str>,
) -> Result<Option<Vec<u64>>, Box<dyn Error>> {
    let until = Instant::now() + SETTLE;
    loop {
        let Some(now) = gpu_memory(backend)? else { return Ok(None) };
        if leaked(before, &now).is_none() || Instant::now() > until {
            return Ok(Some(now));
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
