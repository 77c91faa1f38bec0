//! A loaded library: the control plane.

use std::{
    ffi::{CStr, CString, c_char, c_void},
    marker::PhantomData,
    path::Path,
    ptr,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use collectives_core::{
    Backend, Capabilities, Error, ErrorKind, GroupEnd, JoinAllConfig, JoinConfig, LibraryInfo,
    Rank, Result, UniqueId, shape,
};
use collectives_nccl_abi::{
    self as abi, Flavour, Table, config::ncclEncryptionConfig_t, fork, ncclComm_t, ncclResult_t,
    ncclUniqueId, quirks, types::ncclEncryptionMode_t,
};

use crate::{
    Comm, Vendor,
    capabilities::{self, capabilities_of},
    error, group,
    join::ParentPolicy,
};

/// A loaded library of vendor `V`. Cheap to clone; clones are the same library.
///
/// Three doors to one room: [`load`](Self::load) searches as users expect,
/// [`load_from`](Self::load_from) takes one path, [`from_table`](Self::from_table) opens nothing.
/// None of them needs a GPU or a driver.
pub struct Library<V: Vendor> {
    inner: Arc<Inner>,
    vendor: PhantomData<fn() -> V>,
}

#[derive(Clone)]
struct Inner {
    abi: &'static abi::Library,
    info: LibraryInfo,
    capabilities: Capabilities,
    checks_pointers: bool,
    parent_policy: ParentPolicy,
}

impl<V: Vendor> Library<V> {
    /// Finds and opens the vendor's library; the order of the search is told at
    /// [`collectives_nccl_abi::search`].
    ///
    /// # Errors
    /// [`Library`](ErrorKind::Library), listing every path tried and why each was refused.
    pub fn load() -> Result<Self> {
        abi::Library::load(V::ABI).map(Self::new).map_err(error::from_load)
    }

    /// Opens this library and no other. A bare name is found by the dynamic loader.
    ///
    /// # Errors
    /// [`Library`](ErrorKind::Library), saying what is wrong with it.
    pub fn load_from(path: impl AsRef<Path>) -> Result<Self> {
        abi::Library::load_from(V::ABI, path).map(Self::new).map_err(error::from_load)
    }

    /// Takes a ready-made table of functions and opens nothing.
    ///
    /// # Safety
    /// The functions of the table are those of their signatures in `nccl.h`, behave as NCCL's, and
    /// can be called until the process ends.
    ///
    /// # Errors
    /// [`Library`](ErrorKind::Library) where `ncclGetVersion` does not answer.
    pub unsafe fn from_table(table: Table) -> Result<Self> {
        // SAFETY: the caller's promise.
        let library = unsafe { abi::Library::from_table(V::ABI, table) };
        library.map(Self::new).map_err(error::from_load)
    }

    /// The library below: its table, its raw version, what the search skipped.
    pub fn abi(&self) -> &'static abi::Library {
        self.inner.abi
    }

    /// This library with another policy for the parent of a join with a deadline, for measuring.
    #[doc(hidden)]
    #[must_use]
    pub fn with_parent_policy(&self, policy: ParentPolicy) -> Self {
        let inner = Inner { parent_policy: policy, ..(*self.inner).clone() };
        Self { inner: Arc::new(inner), vendor: PhantomData }
    }

    fn new(library: &'static abi::Library) -> Self {
        let info = LibraryInfo {
            backend: backend_name(V::ABI.flavour),
            path: library.path().map(Path::to_owned),
            version: capabilities::version(library.version()),
            found_by: library.source().to_string(),
        };
        let capabilities = Capabilities {
            f8_format: V::f8_format(),
            ..capabilities_of(library.flavour(), library.version(), library.table())
        };
        let inner = Inner {
            abi: library,
            info,
            capabilities,
            checks_pointers: checks_pointers(),
            parent_policy: ParentPolicy::DEFAULT,
        };
        Self { inner: Arc::new(inner), vendor: PhantomData }
    }

    pub(crate) fn checks_pointers(&self) -> bool {
        self.inner.checks_pointers
    }

    /// Says once in a process what is known against this release; `collectives doctor` has the same.
    pub(crate) fn warn_of_known_bugs(&self) {
        static SAID: Mutex<Vec<(Flavour, i32)>> = Mutex::new(Vec::new());
        let release = (self.inner.abi.flavour(), self.inner.abi.version());
        let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
        if said.contains(&release) {
            return;
        }
        said.push(release);
        drop(said);
        for issue in quirks::known_bad(release.0, release.1).filter(|issue| !issue.guarded) {
            let path = self.inner.info.path.as_deref().map(Path::display);
            tracing::warn!(path = path.map(tracing::field::display), "known bug of {issue}");
        }
    }

    pub(crate) fn parent_policy(&self) -> ParentPolicy {
        self.inner.parent_policy
    }

    /// An error of an operation of this library that concerns no communicator.
    pub(crate) fn refuse(&self, operation: &'static str, error: Error) -> Error {
        error.with_library(&self.inner.info).with_operation(operation)
    }

    pub(crate) fn refuse_in_child(&self, operation: &'static str) -> Result<()> {
        match fork::in_forked_child() {
            true => Err(error::forked(operation, &self.inner.info)),
            false => Ok(()),
        }
    }
}

impl<V: Vendor> Backend for Library<V> {
    type Comm = Comm<V>;
    type Device = V::Device;

    fn info(&self) -> &LibraryInfo {
        &self.inner.info
    }

    fn capabilities(&self) -> &Capabilities {
        &self.inner.capabilities
    }

    fn device_count(&self) -> Result<usize> {
        V::device_count()
    }

    fn device(&self, ordinal: usize) -> Result<V::Device> {
        V::device(ordinal)
    }

    /// `ncclGetUniqueId`; each call leaves a listening thread in the process.
    fn unique_id(&self) -> Result<UniqueId> {
        self.refuse_in_child("unique_id")?;
        let mut id = ncclUniqueId::ZERO;
        // SAFETY: `id` outlives the call.
        let result = unsafe { (self.inner.abi.table().get_unique_id)(&mut id) };
        if result.is_success() {
            return Ok(UniqueId::from(id.internal));
        }
        let error = error::from_result(self.inner.abi, result).with_poison(false);
        // RCCL 2.27.7 wants a device here, and its words say nothing of that.
        let wants_device = quirks::unique_id_needs_device(V::ABI.flavour, self.inner.abi.version());
        let error = match wants_device.then(V::runtime) {
            Some(Err(missing)) => error.with_hint(missing.to_string()),
            Some(Ok(())) | None => error,
        };
        Err(self.refuse("unique_id", error))
    }

    /// `ncclSetEncryption` (2.32.3).
    fn set_encryption(&self, key: Option<&str>) -> Result<()> {
        const OPERATION: &str = "set_encryption";
        self.refuse_in_child(OPERATION)?;
        let named = |error| self.refuse(OPERATION, error);
        shape::encryption_key(key, &self.inner.capabilities).map_err(named)?;
        let Some(set) = self.inner.abi.table().set_encryption else {
            // Not reached: the capability was asked for.
            return Ok(());
        };
        // Checked to hold no NUL.
        let key = key.and_then(|key| CString::new(key).ok());
        let mut config = ncclEncryptionConfig_t::none();
        if let Some(key) = &key {
            (config.mode, config.psk) = (ncclEncryptionMode_t::PSK, key.as_ptr());
        }
        // SAFETY: both outlive the call, and the library copies the key.
        match unsafe { set(&config) } {
            ncclResult_t::SUCCESS => Ok(()),
            result => Err(named(error::from_result(self.inner.abi, result).with_poison(false))),
        }
    }

    /// `ncclParamGetAllParameterKeys` and `ncclParamGetParameter` (2.30.4).
    fn parameters(&self) -> Result<Vec<(String, String)>> {
        const OPERATION: &str = "parameters";
        self.refuse_in_child(OPERATION)?;
        let named = |error| self.refuse(OPERATION, error);
        self.inner.capabilities.parameters.require(OPERATION).map_err(named)?;
        let table = self.inner.abi.table();
        let (Some(list), Some(read)) =
            (table.param_get_all_parameter_keys, table.param_get_parameter)
        else {
            // Not reached: the capability was asked for.
            return Ok(Vec::new());
        };
        let answer = |result: ncclResult_t| match result.is_success() {
            true => Ok(()),
            false => Err(named(error::from_result(self.inner.abi, result).with_poison(false))),
        };
        let (mut keys, mut count) = (ptr::null_mut(), 0);
        // SAFETY: both outlive the call.
        answer(unsafe { list(&mut keys, &mut count) })?;
        let count = if keys.is_null() { 0 } else { usize::try_from(count).unwrap_or(0) };
        let mut parameters = Vec::with_capacity(count);
        for index in 0..count {
            // SAFETY: the library's list is as long as it says.
            let place = unsafe { keys.add(index) };
            // SAFETY: as above; it lives as long as the library.
            let key = unsafe { place.read() };
            let (mut value, mut length) = (ptr::null(), 0);
            // SAFETY: a key of the library; the others outlive the call.
            answer(unsafe { read(key, &mut value, &mut length) })?;
            // SAFETY: null, or text of the library.
            let (key, value) = (unsafe { text(key) }, unsafe { text(value) });
            parameters.push((key, value));
        }
        Ok(parameters)
    }

    /// `ncclCommInitRankConfig` (2.14.3), before that `ncclCommInitRank`; with a deadline
    /// `ncclCommSplit` (2.18.1) as well, on a helper thread: what begins cannot be given up in older
    /// releases, and is ended when it comes about too late. Makes the device current on this thread,
    /// and leaves it so.
    fn join(&self, id: &UniqueId, config: JoinConfig) -> Result<Comm<V>> {
        self.join_one(id, config)
    }

    /// `ncclCommGrow` (2.29.2), as a new rank. Makes the device current on this thread, and leaves
    /// it so. What is not done by the deadline goes on in the background, and is ended when it comes
    /// about.
    fn join_grown(&self, id: &UniqueId, config: JoinConfig) -> Result<Comm<V>> {
        self.join_grown_one(id, config)
    }

    /// `ncclCommInitRankConfig` for each device, in one group of this thread.
    fn join_all(&self, config: JoinAllConfig) -> Result<Vec<Comm<V>>> {
        self.join_devices(config)
    }

    /// `ncclGroupStart`.
    fn group_start(&self) -> Result<()> {
        group::start(self.inner.abi, &self.inner.info)
    }

    /// `ncclGroupEnd`, of a group that holds no refused call.
    fn group_end(&self, end: GroupEnd) -> Result<()> {
        group::end(self.inner.abi, &self.inner.info, end)
    }

    /// Wraps a communicator; asks `ncclCommCount`, `ncclCommUserRank` and `ncclCommCuDevice`, and
    /// no device runtime.
    unsafe fn comm_from_raw(&self, raw: *mut c_void) -> Result<Comm<V>> {
        const OPERATION: &str = "comm_from_raw";
        self.refuse_in_child(OPERATION)?;
        let raw = ncclComm_t(raw);
        if raw.is_null() {
            let error = Error::new(ErrorKind::InvalidArgument, "the communicator is null");
            return Err(self.refuse(OPERATION, error));
        }
        let table = self.inner.abi.table();
        let mut answers = [0; 3];
        let questions = [
            ("ncclCommUserRank", table.comm_user_rank),
            ("ncclCommCount", table.comm_count),
            ("ncclCommCuDevice", table.comm_cu_device),
        ];
        for (answer, (name, question)) in answers.iter_mut().zip(questions) {
            let Some(question) = question else {
                let message = format!("this library has no {name}");
                return Err(self.refuse(OPERATION, Error::new(ErrorKind::Unsupported, message)));
            };
            // SAFETY: the caller promises a live communicator of this library; `answer` outlives
            // the call.
            let result = unsafe { question(raw, answer) };
            if !result.is_success() {
                return Err(self.refuse(OPERATION, error::from_result(self.inner.abi, result)));
            }
        }
        match answers.map(|answer| u32::try_from(answer).ok()) {
            [Some(rank), Some(size), Some(device)] if rank < size => {
                let place = (Rank::new(rank), size as usize, device as usize);
                Ok(Comm::new(self.clone(), raw, place, None, None))
            }
            _ => {
                let [rank, size, device] = answers;
                let message = format!("it calls itself rank {rank} of {size} on device {device}");
                Err(self.refuse(OPERATION, error::broken_promise(message)))
            }
        }
    }
}

impl<V: Vendor> Clone for Library<V> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner), vendor: PhantomData }
    }
}

impl<V: Vendor> std::fmt::Debug for Library<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Library").field(&self.inner.info).finish()
    }
}

/// A copy of a library's text.
///
/// # Safety
/// It is null or a C string.
unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: not null, so a C string.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// Whether `COLLECTIVES_CHECK` asks for pointer checks; read once.
fn checks_pointers() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| match std::env::var("COLLECTIVES_CHECK") {
        Ok(value) if value == "pointers" => true,
        Ok(value) => {
            if !value.is_empty() {
                tracing::warn!(%value, "COLLECTIVES_CHECK knows only the value 'pointers'");
            }
            false
        }
        Err(_) => false,
    })
}

/// The backend's name, as people write it.
const fn backend_name(flavour: Flavour) -> &'static str {
    match flavour {
        Flavour::Nccl => "NCCL",
        Flavour::Rccl => "RCCL",
    }
}
