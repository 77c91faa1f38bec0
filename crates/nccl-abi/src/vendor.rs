//! What differs between the vendors of this ABI, as data.

use std::fmt;

/// Which of the two libraries one speaks to.
///
/// They share functions, values and version codes, so neither symbols nor versions tell them apart
/// for certain: the vendor is what the caller asked for.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Flavour {
    /// NVIDIA's NCCL, on CUDA.
    Nccl,
    /// AMD's RCCL, on ROCm.
    Rccl,
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nccl => "NCCL",
            Self::Rccl => "RCCL",
        })
    }
}

/// A vendor's library: what it is called and where it lives.
///
/// Patterns are relative paths in which a component may hold one `*`; of several matches the
/// highest version is tried first.
#[derive(Debug)]
pub struct Vendor {
    /// Which library this is.
    pub flavour: Flavour,
    /// The versioned name that the dynamic loader finds, and the only one in wheels and run-time
    /// packages.
    pub soname: &'static str,
    /// The unversioned name of development packages.
    pub dev_name: &'static str,
    /// Environment variables that hold a path, in the order in which they are asked.
    pub path_variables: &'static [&'static str],
    /// Folders below Python's site-packages.
    pub package_dirs: &'static [&'static str],
    /// Environment variables that name the vendor's toolkit.
    pub root_variables: &'static [&'static str],
    /// Where the toolkit lives otherwise, relative to the file system's root.
    pub roots: &'static [&'static str],
    /// Folders below a toolkit's root.
    pub root_dirs: &'static [&'static str],
    /// What to do where no library is found.
    pub advice: &'static str,
}

impl Vendor {
    /// NVIDIA's NCCL.
    pub const NCCL: &'static Self = &Self {
        flavour: Flavour::Nccl,
        soname: "libnccl.so.2",
        dev_name: "libnccl.so",
        path_variables: &["COLLECTIVES_NCCL_PATH", "SGLANG_NCCL_SO_PATH", "VLLM_NCCL_SO_PATH"],
        package_dirs: &["nvidia/nccl/lib", "nvidia/cu*/lib", "torch/lib"],
        root_variables: &["CUDA_HOME", "CUDA_PATH"],
        roots: &["usr/local/cuda"],
        root_dirs: &["lib64", "lib"],
        advice: "install NCCL 2.7.3 or newer (for example the Python package nvidia-nccl-cu12), \
                 or set COLLECTIVES_NCCL_PATH to the file libnccl.so.2",
    };

    /// AMD's RCCL.
    pub const RCCL: &'static Self = &Self {
        flavour: Flavour::Rccl,
        soname: "librccl.so.1",
        dev_name: "librccl.so",
        path_variables: &["COLLECTIVES_RCCL_PATH", "SGLANG_NCCL_SO_PATH", "VLLM_NCCL_SO_PATH"],
        package_dirs: &["_rocm_sdk_*/lib", "torch/lib"],
        root_variables: &["ROCM_PATH", "HIP_PATH"],
        roots: &["opt/rocm", "opt/rocm-*"],
        root_dirs: &["lib"],
        advice: "install ROCm 3.7 or newer with RCCL, \
                 or set COLLECTIVES_RCCL_PATH to the file librccl.so.1",
    };

    /// The vendor of this flavour.
    pub const fn of(flavour: Flavour) -> &'static Self {
        match flavour {
            Flavour::Nccl => Self::NCCL,
            Flavour::Rccl => Self::RCCL,
        }
    }
}

impl fmt::Display for Vendor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.flavour.fmt(f)
    }
}
