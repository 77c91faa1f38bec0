//! Where the ranks of a world meet.
//!
//! In this order:
//! 1. A store that the program gave.
//! 2. One rank needs none: a store in memory.
//! 3. The launcher's agent serves one at the master's address and port, or rank 0 does.
//! 4. The launcher names no port, but all ranks are on this host: a file, whose name comes from the
//!    launcher. No port has to be guessed, so two jobs cannot meet.
//!
//! A server that rank 0 started serves as long as its process lives: whoever makes a second world may
//! come before rank 0 does. What ends is rank 0's process, so its world waits, for a bounded time, until
//! the others have left ([`Attendance`]).

use std::{
    collections::HashMap,
    env, fs,
    net::{IpAddr, SocketAddr, ToSocketAddrs as _},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use collectives_core::{Error, ErrorKind, Result};
use collectives_rendezvous::{
    Deadline, Environment, FileStore, MemoryStore, Store, TcpStore, TcpStoreServer,
};

use super::launcher;

/// A store, and whether rank 0 of this world keeps it up for the others.
pub(super) struct Place {
    pub(super) store: Arc<dyn Store>,
    pub(super) kept_by_rank_0: bool,
    /// What rank 0 leaves behind if it does not remove it.
    pub(super) file: Option<PathBuf>,
}

impl Place {
    /// The place that the environment names. `run` is another one for each world of each attempt.
    pub(super) fn of(
        environment: &Environment,
        bind: Option<IpAddr>,
        run: &str,
        deadline: Deadline,
    ) -> Result<Self> {
        if environment.size() == 1 {
            return Ok(Self::given(Arc::new(MemoryStore::new())));
        }
        match (environment.master_address(), environment.master_port()) {
            (Some(host), Some(port)) => Self::tcp(environment, host, port, bind, deadline),
            _ if environment.local_size() == Some(environment.size()) => {
                let path = launcher::meeting_file(environment, run)?;
                let mut place = Self::file(path.clone(), run, environment, deadline)?;
                place.file = Some(path).filter(|_| environment.rank() == 0);
                Ok(place)
            }
            (address, port) => {
                let missing = match (address, port) {
                    (None, None) => "MASTER_ADDR and MASTER_PORT are not",
                    (None, Some(_)) => "MASTER_ADDR is not",
                    (Some(_), _) => "MASTER_PORT is not",
                };
                let message = format!(
                    "{missing} set, {} names no place to meet, and not all {} ranks are known to be on \
                     this host",
                    environment.launcher(),
                    environment.size()
                );
                Err(Error::new(ErrorKind::InvalidArgument, message).with_hint(
                    "set MASTER_ADDR to the host of rank 0, and MASTER_PORT to a free port there, on all \
                     ranks",
                ))
            }
        }
    }

    pub(super) fn given(store: Arc<dyn Store>) -> Self {
        Self { store, kept_by_rank_0: false, file: None }
    }

    /// A file that all ranks see. It stays.
    pub(super) fn file(
        path: PathBuf,
        run: &str,
        environment: &Environment,
        deadline: Deadline,
    ) -> Result<Self> {
        let store = match environment.rank() {
            0 => FileStore::create(path, run)?,
            _ => FileStore::join(path, run, deadline).map_err(|error| {
                let who =
                    format!("rank 0 of {}, which makes the file to meet in", environment.size());
                unreached(&who, error.kind(), error)
            })?,
        };
        Ok(Self::given(Arc::new(store)))
    }

    fn tcp(
        environment: &Environment,
        host: &str,
        port: u16,
        bind: Option<IpAddr>,
        deadline: Deadline,
    ) -> Result<Self> {
        let serves = !environment.store_is_served();
        // In brackets a port can follow an IPv6 address.
        let address = match host.contains(':') && !host.starts_with('[') {
            true => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        };
        let mut reached_at = address.clone();
        if serves && environment.rank() == 0 {
            let at = serve(environment, &address, port, bind)?;
            if !at.ip().is_unspecified() {
                reached_at = at.to_string();
            }
        }
        let store = TcpStore::connect(&reached_at, deadline).map_err(|error| {
            let who = match serves {
                true => format!("rank 0 of {}", environment.size()),
                false => "the launcher's agent".to_owned(),
            };
            let kind = match deadline.remaining() {
                Some(_) => error.kind(),
                None => ErrorKind::Timeout,
            };
            unreached(&format!("{who}, which serves the store"), kind, error)
        })?;
        Ok(Self { store: Arc::new(store), kept_by_rank_0: serves, file: None })
    }
}

/// Who is missing, in place of a store that could not be opened.
fn unreached(who: &str, kind: ErrorKind, error: Error) -> Error {
    let new = Error::new(kind, format!("{who}, was not reached: {}", error.message()));
    match error.hint().map(ToOwned::to_owned) {
        Some(hint) => new.with_hint(hint),
        None => new,
    }
    .with_poison(false)
    .with_source(error)
}

/// Serves at the master's address, or at `bind` with its port, until this process ends.
fn serve(
    environment: &Environment,
    address: &str,
    port: u16,
    bind: Option<IpAddr>,
) -> Result<SocketAddr> {
    static SERVERS: Mutex<Option<HashMap<String, TcpStoreServer>>> = Mutex::new(None);
    let mut servers = SERVERS.lock().unwrap_or_else(PoisonError::into_inner);
    let servers = servers.get_or_insert_default();
    let bind = match bind {
        Some(bind) => Some(bind),
        None => bind_variable()?,
    };
    let at = bind.map_or_else(|| address.to_owned(), |ip| SocketAddr::new(ip, port).to_string());
    if let Some(server) = servers.get(&at) {
        return Ok(server.address());
    }
    if bind.is_none() {
        reachable(environment, address)?;
    }
    let server = TcpStoreServer::bind(at.as_str()).map_err(|error| {
        error.with_hint(format!(
            "rank 0 serves the store where the others look for it; if this host has other addresses, say \
             at which to listen by {BIND} or with_bind_address; if the port is taken, set MASTER_PORT to \
             another on all ranks"
        ))
    })?;
    let bound = server.address();
    servers.insert(at, server);
    Ok(bound)
}

fn bind_variable() -> Result<Option<IpAddr>> {
    let Some(text) = env::var_os(BIND).filter(|text| !text.is_empty()) else { return Ok(None) };
    let text = text.to_string_lossy();
    text.parse().map(Some).map_err(|_| {
        let message = format!("{BIND} is '{text}', want an IP address of this host");
        Error::new(ErrorKind::InvalidArgument, message)
    })
}

/// Refuses to listen at a loopback address for ranks of other hosts: that is what Debian's `/etc/hosts`
/// makes of a host's own name.
fn reachable(environment: &Environment, address: &str) -> Result<()> {
    let elsewhere = environment.local_size().is_some_and(|local| local < environment.size());
    // Whoever sets several "hosts" on one machine for a test says so by an address, not by a name.
    let name = address.parse::<SocketAddr>().is_err() && !address.starts_with("localhost:");
    let Ok(mut found) = address.to_socket_addrs() else { return Ok(()) };
    if elsewhere && name && found.all(|found| found.ip().is_loopback()) {
        let message = format!(
            "{address} is a loopback address on the host of rank 0, where ranks of other hosts do not reach it"
        );
        return Err(Error::new(ErrorKind::InvalidArgument, message).with_hint(format!(
            "set MASTER_ADDR to an address of that host on the network, or {BIND} there to the one to listen at"
        )));
    }
    Ok(())
}

/// This process among those that use a store which rank 0 keeps up.
pub(super) struct Attendance {
    store: Arc<dyn Store>,
    is_keeper: bool,
    /// How many are waited for at least, also if they have not come.
    awaited: i64,
}

impl Attendance {
    pub(super) fn begin(
        store: Arc<dyn Store>,
        is_keeper: bool,
        deadline: Deadline,
    ) -> Result<Self> {
        store.add(PRESENT, 1, deadline)?;
        Ok(Self { store, is_keeper, awaited: 0 })
    }

    /// Lets the keeper wait at the end for so many ranks: what was found without some of them, they are to
    /// hear, too.
    pub(super) fn await_late(&mut self, ranks: usize) {
        self.awaited = ranks as i64;
    }
}

impl Drop for Attendance {
    /// Leaves. The keeper waits until all others have, for at most [`PATIENCE`]: who was killed never
    /// does, and who is awaited may never come.
    fn drop(&mut self) {
        let moment = || Deadline::after(Duration::from_secs(1));
        let Ok(mut left) = self.store.add(LEFT, 1, moment()) else { return };
        if !self.is_keeper || thread::panicking() {
            return;
        }
        let until = Instant::now() + PATIENCE;
        let mut pause = Duration::from_millis(1);
        while Instant::now() < until {
            match self.store.add(PRESENT, 0, moment()) {
                Ok(present) if left < present.max(self.awaited) => {}
                _ => return,
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
            match self.store.add(LEFT, 0, moment()) {
                Ok(now) => left = now,
                Err(_) => return,
            }
        }
        tracing::warn!(
            store = self.store.describe(),
            "ranks that came to the store have not left it"
        );
    }
}

/// Removes a file that nobody needs any more.
pub(super) fn remove(file: &PathBuf) {
    // It lies in a folder of the job, or of temporary files: what stays there harms nobody.
    let _ = fs::remove_file(file);
}

/// Where rank 0 listens, if not at the master's address.
const BIND: &str = "COLLECTIVES_BIND_ADDRESS";
/// How many processes have come to a store, and how many have left it.
const PRESENT: &str = "present";
const LEFT: &str = "left";
/// How long rank 0 waits at the end for those who have not left.
const PATIENCE: Duration = Duration::from_secs(5);
