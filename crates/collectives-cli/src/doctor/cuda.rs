//! What the CUDA driver says of itself, for checks that no file answers: its version, and which
//! devices reach each other's memory. Runs in a child only; see [`probe`](super::probe).

use std::{
    ffi::{c_int, c_uint},
    fs,
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

/// The CUDA driver, as far as it answered.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(crate) struct CudaReport {
    /// The file that was loaded.
    pub(crate) library: Option<PathBuf>,
    /// Why none was.
    pub(crate) problem: Option<String>,
    /// The newest CUDA that it serves: (13, 0).
    pub(crate) version: Option<(u32, u32)>,
    /// What `cuInit` answered; 0 is success.
    pub(crate) init: Option<i32>,
    pub(crate) devices: usize,
    /// Pairs of devices of which the first can't reach the memory of the second.
    pub(crate) out_of_reach: Vec<(usize, usize)>,
}

/// Loads the driver and asks it.
pub(crate) fn look() -> CudaReport {
    // SAFETY: the driver's library, whose initialisers every CUDA program runs.
    let driver = match unsafe { libloading::Library::new(NAME) } {
        Ok(driver) => driver,
        Err(error) => {
            return CudaReport { problem: Some(error.to_string()), ..CudaReport::default() };
        }
    };
    let mut report = CudaReport { library: mapped(), ..CudaReport::default() };
    let Some(functions) = Functions::find(&driver) else {
        report.problem = Some(format!("{NAME} lacks functions of CUDA's driver"));
        return report;
    };
    functions.fill(&mut report);
    // The driver starts threads, so its code stays.
    std::mem::forget(driver);
    report
}

/// The file behind the driver's library, with links resolved.
fn mapped() -> Option<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let path = maps.lines().filter_map(|line| line.find('/').map(|start| &line[start..]));
    path.map(PathBuf::from).find(|path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libcuda.so"))
    })
}

/// The functions that are asked, as `cuda.h` declares them.
struct Functions {
    version: unsafe extern "C" fn(*mut c_int) -> c_int,
    init: unsafe extern "C" fn(c_uint) -> c_int,
    count: unsafe extern "C" fn(*mut c_int) -> c_int,
    device: unsafe extern "C" fn(*mut c_int, c_int) -> c_int,
    can_access_peer: unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int,
}

impl Functions {
    fn find(driver: &libloading::Library) -> Option<Self> {
        Some(Self {
            // SAFETY: the signature is that of `cuda.h`, unchanged since the function exists.
            version: *unsafe { driver.get(c"cuDriverGetVersion") }.ok()?,
            // SAFETY: as above.
            init: *unsafe { driver.get(c"cuInit") }.ok()?,
            // SAFETY: as above.
            count: *unsafe { driver.get(c"cuDeviceGetCount") }.ok()?,
            // SAFETY: as above.
            device: *unsafe { driver.get(c"cuDeviceGet") }.ok()?,
            // SAFETY: as above.
            can_access_peer: *unsafe { driver.get(c"cuDeviceCanAccessPeer") }.ok()?,
        })
    }

    fn fill(&self, report: &mut CudaReport) {
        let mut version = 0;
        // SAFETY: `version` outlives the call, which needs no `cuInit` before.
        if unsafe { (self.version)(&mut version) } == SUCCESS {
            report.version =
                u32::try_from(version).ok().map(|code| (code / 1000, code % 1000 / 10));
        }
        // SAFETY: the only flag is 0.
        let init = unsafe { (self.init)(0) };
        report.init = Some(init);
        if init != SUCCESS {
            return;
        }
        let mut count = 0;
        // SAFETY: the driver is initialised, and `count` outlives the call.
        if unsafe { (self.count)(&mut count) } != SUCCESS {
            return;
        }
        report.devices = usize::try_from(count).unwrap_or(0);
        let devices: Vec<(usize, c_int)> = (0..count).filter_map(|at| self.device(at)).collect();
        for &(first, from) in &devices {
            for &(second, to) in &devices {
                if first != second && !self.reaches(from, to) {
                    report.out_of_reach.push((first, second));
                }
            }
        }
    }

    /// The device of this number, behind the number.
    fn device(&self, ordinal: c_int) -> Option<(usize, c_int)> {
        let mut device = 0;
        // SAFETY: the driver is initialised, and `device` outlives the call.
        let result = unsafe { (self.device)(&mut device, ordinal) };
        (result == SUCCESS).then_some((usize::try_from(ordinal).ok()?, device))
    }

    fn reaches(&self, from: c_int, to: c_int) -> bool {
        let mut reaches = 0;
        // SAFETY: both devices are the driver's own, and `reaches` outlives the call.
        let result = unsafe { (self.can_access_peer)(&mut reaches, from, to) };
        // A driver that doesn't know is not held against the devices.
        result != SUCCESS || reaches != 0
    }
}

const NAME: &str = "libcuda.so.1";
const SUCCESS: c_int = 0;

/// The toolkit's stand-in for linking was loaded.
pub(crate) const STUB_LIBRARY: i32 = 34;
/// NVSwitch's fabric manager has not set the links up.
pub(crate) const NOT_READY: i32 = 802;
/// The library and the kernel module are of different releases.
pub(crate) const DRIVER_MISMATCH: i32 = 803;
/// A forward-compatible library on a device that has no such service.
pub(crate) const COMPAT_NOT_SUPPORTED: i32 = 804;
