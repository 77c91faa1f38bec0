//! Which backend this process uses, and why.

use std::sync::Once;

use collectives_backend_mock::Mock;
use collectives_backend_nccl::Nccl;
use collectives_backend_rccl::Rccl;
use collectives_core::{Backend, Capabilities, Error, LibraryInfo, Result};
use serde::Serialize;

use crate::{
    AnyBackend,
    platform::{BackendName, Decision, Platform},
};

/// Opens the backend for this process: `COLLECTIVES_BACKEND` if set, else NCCL where there are
/// NVIDIA GPUs, RCCL where there are AMD's, else the CPU mock, with one warning that says why.
///
/// GPU hardware without a usable library is an error, never the mock.
///
/// # Errors
/// As [`Selection::open`].
pub fn backend() -> Result<AnyBackend> {
    Selection::detect(None).open()
}

/// Opens the backend of that name: `nccl`, `rccl`, `mock`; or `auto`, as [`backend`] does.
///
/// # Errors
/// [`InvalidArgument`](collectives_core::ErrorKind::InvalidArgument) for another name; as [`Selection::open`].
pub fn backend_named(name: &str) -> Result<AnyBackend> {
    match name {
        "auto" => backend(),
        name => Selection::detect(Some(name.parse()?)).open(),
    }
}

/// What was seen on this machine, and which backend follows from it.
///
/// ```
/// use collectives::Selection;
/// let selection = Selection::detect(Some("mock".parse()?));
/// println!("{:#?}", selection.platform());
/// let backend = selection.open()?;
/// # Ok::<(), collectives::Error>(())
/// ```
#[derive(Debug)]
pub struct Selection {
    platform: Platform,
    decision: Result<Decision>,
}

impl Selection {
    /// Looks at this machine; see [`Platform::detect`]. `requested` decides before everything else.
    pub fn detect(requested: Option<BackendName>) -> Self {
        Self::on(Platform::detect(), requested)
    }

    /// Decides for a platform that was looked at before.
    pub fn on(platform: Platform, requested: Option<BackendName>) -> Self {
        let decision = platform.choose(requested);
        Self { platform, decision }
    }

    /// What was seen.
    pub fn platform(&self) -> &Platform {
        &self.platform
    }

    /// What was decided.
    ///
    /// # Errors
    /// As [`Platform::choose`].
    pub fn decision(&self) -> Result<&Decision, &Error> {
        self.decision.as_ref()
    }

    /// Opens the backend that was decided on. Falling back to the mock logs one warning for the
    /// process.
    ///
    /// # Errors
    /// As [`Platform::choose`]; [`Library`](collectives_core::ErrorKind::Library) where no usable library is found,
    /// with every path tried.
    pub fn open(self) -> Result<AnyBackend> {
        self.open_over(Mock::shared)
    }

    /// The same, with another way to the mock.
    pub(crate) fn open_over(self, mock: impl FnOnce() -> Result<Mock>) -> Result<AnyBackend> {
        let decision = self.decision?;
        if decision.fallback {
            static WARNED: Once = Once::new();
            WARNED.call_once(|| {
                tracing::warn!(
                    reason = decision.reason,
                    "collectives run on the CPU mock; set COLLECTIVES_BACKEND to choose"
                );
            });
        }
        match decision.backend {
            BackendName::Mock => mock().map(AnyBackend::Mock),
            BackendName::Nccl => {
                Nccl::load().map(AnyBackend::Nccl).map_err(|error| unusable(error, &decision))
            }
            BackendName::Rccl => {
                Rccl::load().map(AnyBackend::Rccl).map_err(|error| unusable(error, &decision))
            }
        }
    }

    /// The same as data: for logs, and for what `collectives doctor` prints. Opens the library.
    pub fn explain(self) -> Explanation {
        let platform = self.platform.clone();
        let (backend, reason) = match &self.decision {
            Ok(decision) => (Some(decision.backend), decision.reason.clone()),
            Err(error) => (None, error.to_string()),
        };
        let (library, capabilities, devices, problem) = match self.open() {
            Ok(opened) => {
                let devices = opened.device_count();
                (
                    Some(opened.info().clone()),
                    Some(*opened.capabilities()),
                    devices.as_ref().ok().copied(),
                    devices.err().map(|error| error.to_string()),
                )
            }
            Err(error) => (None, None, None, Some(error.to_string())),
        };
        Explanation { platform, backend, reason, library, capabilities, devices, problem }
    }
}

/// Why this process uses the backend that it uses.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Explanation {
    /// What was seen.
    pub platform: Platform,
    /// What was decided; `None` where nothing could be.
    pub backend: Option<BackendName>,
    /// Why.
    pub reason: String,
    /// The library that was opened.
    pub library: Option<LibraryInfo>,
    /// What it can do.
    pub capabilities: Option<Capabilities>,
    /// How many devices it can use.
    pub devices: Option<usize>,
    /// What keeps the backend from working.
    pub problem: Option<String>,
}

#[cold]
fn unusable(error: Error, decision: &Decision) -> Error {
    if error.hint().is_some() {
        return error;
    }
    // Where to get the library, the error says itself.
    error.with_hint(format!(
        "the backend mock runs on the CPU; this backend was chosen because: {}",
        decision.reason
    ))
}
