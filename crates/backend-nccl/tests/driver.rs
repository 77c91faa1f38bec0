//! A CUDA driver that is missing or broken is an error that says what to do, and never a panic.

use std::{env, process::Command};

use collectives_backend_nccl::{Cuda, CudaDevice, DRIVER_SYMBOLS};
use collectives_core::{Error, ErrorKind};
use collectives_nccl_family::Vendor;
use libtest_mimic::{Arguments, Failed, Trial};

fn main() {
    if env::var_os(CHILD).is_some() {
        println!("{}", answers());
        return;
    }
    let title = "a_missing_driver_is_an_error_with_advice";
    let missing = if has_driver() {
        let title = format!("[needs a machine without a CUDA driver] {title}");
        Trial::test(title, || Err("not run".into())).with_ignored_flag(true)
    } else {
        Trial::test(title, a_missing_driver_is_an_error_with_advice)
    };
    let broken = Trial::test("a_broken_driver_is_named", a_broken_driver_is_named);
    let linux_only = cfg!(not(target_os = "linux"));
    let trials = vec![missing, broken.with_ignored_flag(linux_only)];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

/// Opens what the crate opens.
fn has_driver() -> bool {
    ["libcuda.so", "libcuda.so.1"].iter().any(|name| {
        // SAFETY: the driver's library, whose initialisers every CUDA program runs.
        unsafe { libloading::Library::new(*name) }.is_ok()
    })
}

/// What the device layer answers: one line, the same from each door.
fn answers() -> String {
    let doors: [Result<(), Error>; 4] = [
        Cuda::runtime(),
        Cuda::device_count().map(drop),
        CudaDevice::open(0).map(drop),
        Cuda::make_current(0),
    ];
    let mut texts = doors.map(|answer| match answer {
        Ok(()) => "good".to_owned(),
        Err(error) if error.kind() == ErrorKind::Device => error.to_string(),
        Err(error) => format!("{:?}: {error}", error.kind()),
    });
    texts.sort();
    match texts.iter().all(|text| *text == texts[0]) {
        true => std::mem::take(&mut texts[0]),
        false => format!("{texts:?}"),
    }
}

fn a_missing_driver_is_an_error_with_advice() -> Result<(), Failed> {
    let text = answers();
    for part in ["CUDA: no CUDA driver: tried libcuda.so (", "libcuda.so.1 (", "install the NVIDIA"]
    {
        if !text.contains(part) {
            return Err(format!("{text:?} lacks {part:?}").into());
        }
    }
    Ok(())
}

/// Runs this program again where a library without a single function of the driver has its name:
/// the one that cudarc would find, and panic over.
fn a_broken_driver_is_named() -> Result<(), Failed> {
    for name in ["libcuda.so", "libcuda.so.1"] {
        let folder = tempfile::tempdir()?;
        std::os::unix::fs::symlink(c_library()?, folder.path().join(name))?;
        let child = Command::new(env::current_exe()?)
            .env(CHILD, "1")
            .env("LD_LIBRARY_PATH", folder.path())
            .output()?;
        let text = String::from_utf8_lossy(&child.stdout);
        let lacks = text.contains(&format!("the CUDA driver {name} lacks "));
        let all = DRIVER_SYMBOLS.iter().all(|symbol| text.contains(symbol));
        // Where the machine has a driver, `libcuda.so` may be found in place of our `.so.1`.
        let other = name == "libcuda.so.1" && has_driver();
        if !(child.status.success() && (lacks && all || other)) {
            let errors = String::from_utf8_lossy(&child.stderr);
            return Err(format!("{name}: {text}{errors}").into());
        }
    }
    Ok(())
}

/// The file of a library that is no CUDA driver.
fn c_library() -> Result<String, Failed> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let path = maps.split_whitespace().find(|word| word.contains("/libc.so"));
    Ok(path.ok_or("the C library is mapped")?.to_owned())
}

/// Tells this program that it is the child.
const CHILD: &str = "COLLECTIVES_TEST_DRIVER_CHILD";
