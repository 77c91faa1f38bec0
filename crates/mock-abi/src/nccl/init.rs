//! How communicators come to be.
#![expect(non_snake_case, reason = "C names stay C names, as in nccl.h")]

use std::{cell::Cell, env, ffi::c_int};

use collectives_core::{
    Backend, Collectives, GrowConfig, JoinAllConfig, JoinConfig, Rank, ShrinkConfig, Split,
    SplitConfig, UniqueId,
};
use collectives_nccl_abi::{
    ncclComm_t, ncclConfig_t, ncclResult_t, ncclUniqueId,
    types::{NCCL_SHRINK_ABORT, NCCL_SHRINK_DEFAULT, NCCL_SPLIT_NOCOLOR},
};

use super::{
    birth::{Child, Making, Out},
    comm::{Comm, place_of},
    config::Config,
    group::{self, Job, Join, Make, checked},
    log::{self, Subsystem},
    refusal::{Refusal, Result, answer, tell},
};
use crate::runtime;

export! {
    nccl, on_panic = ncclResult_t::INTERNAL_ERROR;

    /// Makes the identifier of a communicator.
    fn ncclGetUniqueId(unique_id: *mut ncclUniqueId) -> ncclResult_t {
        answer(|| {
            if unique_id.is_null() {
                return Err(Refusal::null("GetUniqueId", "out"));
            }
            let id = match comm_id() {
                None => runtime::mock()?.unique_id()?,
                Some(address) => id_of_address(&address)?,
            };
            let internal = id.to_array()?;
            tell("GetUniqueId", "out", unique_id, ncclUniqueId { internal })
        })
    }

    /// Joins a communicator; every rank calls it, with the same `comm_id`.
    fn ncclCommInitRank(
        comm: *mut ncclComm_t, nranks: c_int, comm_id: ncclUniqueId, rank: c_int,
    ) -> ncclResult_t {
        checked(|| join("ncclCommInitRank", comm, nranks, &comm_id, rank, Config::DEFAULT))
    }

    /// `ncclCommInitRank` with a configuration.
    fn ncclCommInitRankConfig(
        comm: *mut ncclComm_t, nranks: c_int, comm_id: ncclUniqueId, rank: c_int,
        config: *mut ncclConfig_t,
    ) -> ncclResult_t {
        const CALL: &str = "ncclCommInitRankConfig";
        checked(|| {
            check_place(CALL, comm, nranks, rank)?;
            // SAFETY: null, or the caller's struct, which is as long as it says.
            let config = unsafe { Config::read(config, &Config::DEFAULT) }?;
            join(CALL, comm, nranks, &comm_id, rank, config)
        })
    }

    /// `ncclCommInitRankConfig` with several identifiers. One is enough for the mock, the first.
    fn ncclCommInitRankScalable(
        newcomm: *mut ncclComm_t, nranks: c_int, myrank: c_int, n_id: c_int,
        comm_ids: *mut ncclUniqueId, config: *mut ncclConfig_t,
    ) -> ncclResult_t {
        const CALL: &str = "ncclCommInitRankScalable";
        checked(|| {
            if n_id < 1 || n_id > nranks {
                return Err(Refusal::argument(format!(
                    "{CALL} : invalid number of ids {n_id}, not in the 1..{nranks} range"
                )));
            }
            if comm_ids.is_null() {
                return Err(Refusal::null(CALL, "commIds"));
            }
            check_place(CALL, newcomm, nranks, myrank)?;
            // SAFETY: not null, and there is at least one.
            let id = unsafe { comm_ids.read() };
            // SAFETY: null, or the caller's struct, which is as long as it says.
            let config = unsafe { Config::read(config, &Config::DEFAULT) }?;
            join(CALL, newcomm, nranks, &id, myrank, config)
        })
    }

    /// Makes one communicator per device of this process.
    fn ncclCommInitAll(comms: *mut ncclComm_t, ndev: c_int, devlist: *const c_int) -> ncclResult_t {
        checked(|| {
            let devices = device_list(comms, ndev, devlist)?;
            if devices.is_empty() {
                return Ok(ncclResult_t::SUCCESS);
            }
            let ends = runtime::mock()?.join_all(JoinAllConfig::new(devices))?;
            log::version(0);
            for (rank, end) in ends.into_iter().enumerate() {
                let (size, device) = (end.info().size, end.info().device);
                let comm = Comm::make(rank, size, device, Config::DEFAULT);
                comm.lock().settle(end);
                // SAFETY: the caller's array has a place for each device.
                let place = unsafe { comms.add(rank) };
                // SAFETY: as above.
                unsafe { place.write(comm.handle()) };
            }
            Ok(ncclResult_t::SUCCESS)
        })
    }

    /// Makes a communicator for each color; every rank of the parent calls it.
    fn ncclCommSplit(
        comm: ncclComm_t, color: c_int, key: c_int, newcomm: *mut ncclComm_t,
        config: *mut ncclConfig_t,
    ) -> ncclResult_t {
        const CALL: &str = "ncclCommSplit";
        checked(|| {
            let parent = Comm::of(CALL, comm)?;
            let config = offspring(CALL, parent, newcomm, config)?;
            parent.lock().live(CALL)?;
            let color = match u32::try_from(color) {
                Ok(color) => Some(color),
                Err(_) if color == NCCL_SPLIT_NOCOLOR => None,
                // NCCL's documentation forbids it, its code does not.
                Err(_) => {
                    return Err(Refusal::argument(format!(
                        "{CALL} : color is {color}, want 0 or more, or NCCL_SPLIT_NOCOLOR \
                         (stricter than NCCL)"
                    )));
                }
            };
            let mut asked = SplitConfig::no_color().with_key(key);
            (asked.color, asked.name) = (color, config.name.clone());
            let making: Making = Box::new(move |parent| parent.split(asked));
            make(CALL, parent, newcomm, config, making)
        })
    }

    /// Makes a communicator without some ranks; only those that stay call it. It sorts the caller's
    /// list.
    fn ncclCommShrink(
        comm: ncclComm_t, exclude_ranks_list: *mut c_int, exclude_ranks_count: c_int,
        newcomm: *mut ncclComm_t, config: *mut ncclConfig_t, shrink_flags: c_int,
    ) -> ncclResult_t {
        const CALL: &str = "ncclCommShrink";
        checked(|| {
            let parent = Comm::of(CALL, comm)?;
            let config = offspring(CALL, parent, newcomm, config)?;
            let abort = match shrink_flags {
                NCCL_SHRINK_DEFAULT => false,
                NCCL_SHRINK_ABORT => true,
                flags => {
                    return Err(Refusal::argument(format!("{CALL} : invalid shrinkFlags {flags}")));
                }
            };
            let exclude = excluded(CALL, parent, exclude_ranks_list, exclude_ranks_count)?;
            let mut state = parent.lock();
            if !abort {
                state.usable(CALL)?;
            }
            // Afterwards it is good for another shrink and its end only.
            state.revoked |= abort;
            drop(state);
            let mut asked = ShrinkConfig::new(exclude);
            (asked.abort, asked.name) = (abort, config.name.clone());
            let making: Making = Box::new(move |parent| parent.shrink(asked).map(Some));
            make(CALL, parent, newcomm, config, making)
        })
    }

    /// Makes the identifier with which new ranks join a growing communicator.
    fn ncclCommGetUniqueId(comm: ncclComm_t, unique_id: *mut ncclUniqueId) -> ncclResult_t {
        const CALL: &str = "ncclCommGetUniqueId";
        answer(|| {
            let state = Comm::of(CALL, comm)?.lock();
            let mock = state.live(CALL)?;
            if unique_id.is_null() {
                return Err(Refusal::null(CALL, "uniqueId"));
            }
            if comm_id().is_some() {
                return Err(Refusal::usage(format!(
                    "{CALL} should not be called when {COMM_ID} is set"
                )));
            }
            let internal = mock.grow_id()?.to_array()?;
            tell(CALL, "uniqueId", unique_id, ncclUniqueId { internal })
        })
    }

    /// Makes a communicator with more ranks than its parent.
    fn ncclCommGrow(
        comm: ncclComm_t, n_ranks: c_int, unique_id: *const ncclUniqueId, rank: c_int,
        newcomm: *mut ncclComm_t, config: *mut ncclConfig_t,
    ) -> ncclResult_t {
        const CALL: &str = "ncclCommGrow";
        checked(|| {
            if newcomm.is_null() {
                return Err(Refusal::null(CALL, "newcomm"));
            }
            let size = usize::try_from(n_ranks).ok().filter(|&size| size > 0).ok_or_else(|| {
                Refusal::argument(format!("{CALL} : invalid number of ranks {n_ranks}"))
            })?;
            if comm.is_null() {
                return join_grown(CALL, newcomm, size, unique_id, rank, config);
            }
            let parent = Comm::of(CALL, comm)?;
            let config = offspring(CALL, parent, newcomm, config)?;
            let members = parent.lock().live(CALL)?.info().size;
            if size <= members || rank != -1 {
                return Err(Refusal::argument(format!(
                    "{CALL} : {n_ranks} ranks and rank {rank}, want more than the {members} \
                     members, who keep their ranks and pass -1"
                )));
            }
            let mut asked = GrowConfig::new(size);
            asked.name.clone_from(&config.name);
            let making: Making = Box::new(move |parent| parent.grow(asked).map(Some));
            make(CALL, parent, newcomm, config, making)
        })
    }
}

/// The address that all ranks have in common, where they do.
fn comm_id() -> Option<String> {
    env::var(COMM_ID).ok()
}

/// Where to find the address of rank 0.
const COMM_ID: &str = "NCCL_COMM_ID";

/// The id under which all ranks meet that have this address: nobody listens there, it is but a name.
///
/// An id of the mock makes one communicator, while an address serves for any number. So the `n`th id
/// of a thread is the one that others get as their `n`th.
///
/// # Errors
/// NCCL's where it is no address.
fn id_of_address(address: &str) -> Result<UniqueId> {
    thread_local! {
        static ASKED: Cell<u64> = const { Cell::new(0) };
    }
    if !is_address(address) {
        return Err(Refusal::argument(format!(
            "Invalid {COMM_ID}, please use format: <ipv4>:<port> or [<ipv6>]:<port> or \
             <hostname>:<port>, not {address}"
        )));
    }
    log::info(Subsystem::Env, format_args!("{COMM_ID} set by environment to {address}"));
    let number = ASKED.replace(ASKED.get() + 1);
    // SAFETY: takes nothing and cannot fail.
    let user = unsafe { libc::geteuid() };
    let name = format!("{COMM_ID} {address} {user} {number}");
    Ok(runtime::mock()?.unique_id_named(&name)?)
}

fn is_address(text: &str) -> bool {
    let parts = text.rsplit_once(':');
    parts.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

/// NCCL's checks of a rank that joins, in its order.
fn check_place(call: &str, comm: *mut ncclComm_t, nranks: c_int, rank: c_int) -> Result<()> {
    if comm.is_null() {
        return Err(Refusal::null(call, "comm"));
    }
    if nranks < 1 || rank < 0 || rank >= nranks {
        return Err(Refusal::argument(format!("Invalid rank requested : {rank}/{nranks}")));
    }
    Ok(())
}

/// A rank joins, now or at the end of the group.
fn join(
    call: &'static str,
    comm: *mut ncclComm_t,
    nranks: c_int,
    id: &ncclUniqueId,
    rank: c_int,
    config: Config,
) -> Result<ncclResult_t> {
    check_place(call, comm, nranks, rank)?;
    let (rank, size) = (rank as usize, nranks as usize);
    submit_join(call, Out::new(comm), UniqueId::from(id.internal), rank, size, config, false)
}

/// A new rank joins a communicator that grows.
fn join_grown(
    call: &'static str,
    newcomm: *mut ncclComm_t,
    size: usize,
    id: *const ncclUniqueId,
    rank: c_int,
    config: *const ncclConfig_t,
) -> Result<ncclResult_t> {
    if id.is_null() {
        return Err(Refusal::null(call, "uniqueId"));
    }
    let rank = usize::try_from(rank)
        .ok()
        .filter(|&rank| rank < size)
        .ok_or_else(|| Refusal::argument(format!("Invalid rank requested : {rank}/{size}")))?;
    // SAFETY: not null, so the caller's.
    let id = unsafe { id.read() };
    // SAFETY: null, or the caller's struct, which is as long as it says.
    let mut config = unsafe { Config::read(config, &Config::DEFAULT) }?;
    // Waiting here is what a non-blocking communicator may do too.
    config.blocking = true;
    submit_join(call, Out::new(newcomm), UniqueId::from(id.internal), rank, size, config, true)
}

fn submit_join(
    call: &'static str,
    out: Out,
    id: UniqueId,
    rank: usize,
    size: usize,
    config: Config,
    grows: bool,
) -> Result<ncclResult_t> {
    let device = place_of(rank)?;
    log::version(rank);
    let mut asked = JoinConfig::new(Rank::new(rank as u32), size).with_device(device);
    asked.name.clone_from(&config.name);
    let comm = Comm::make(rank, size, device, config);
    // Before it is complete, as in NCCL; and null again if it fails.
    out.set(comm.handle());
    let join = Join { call, comm, out, id, config: asked, grows };
    join.tell_start();
    group::submit(Job::Join(join))
}

/// Checks what split, shrink and grow have in common, and reads the configuration of the child.
fn offspring(
    call: &str,
    parent: &Comm,
    newcomm: *mut ncclComm_t,
    config: *const ncclConfig_t,
) -> Result<Config> {
    if newcomm.is_null() {
        return Err(Refusal::null(call, "newcomm"));
    }
    // SAFETY: not null, so the caller's.
    unsafe { newcomm.write(ncclComm_t::NULL) };
    let inherited = parent.lock().config.clone();
    // SAFETY: null, or the caller's struct, which is as long as it says.
    unsafe { Config::read(config, &inherited) }
}

fn make(
    call: &'static str,
    parent: &'static Comm,
    newcomm: *mut ncclComm_t,
    config: Config,
    making: Making,
) -> Result<ncclResult_t> {
    let child = Child { call, out: Out::new(newcomm), config };
    group::submit(Job::Make(Make { parent, making, child }))
}

/// The ranks of a list, which is sorted where it stands, as NCCL does.
fn excluded(call: &str, parent: &Comm, list: *mut c_int, count: c_int) -> Result<Vec<Rank>> {
    let count = usize::try_from(count).ok().filter(|&count| count > 0 && !list.is_null());
    let Some(count) = count else {
        return Err(Refusal::argument(format!("{call} : the list of excluded ranks is empty")));
    };
    // SAFETY: not null, and the caller's array has that many entries.
    let list = unsafe { std::slice::from_raw_parts_mut(list, count) };
    list.sort_unstable();
    let own = parent.lock().rank;
    let rank = |&rank: &c_int| match u32::try_from(rank) {
        Ok(rank) if rank as usize != own => Ok(Rank::new(rank)),
        _ => Err(Refusal::argument(format!(
            "{call} : rank {rank} in the list of rank {own}, which only ranks that stay give"
        ))),
    };
    list.iter().map(rank).collect()
}

/// The devices of `ncclCommInitAll`, checked in NCCL's order.
fn device_list(comms: *mut ncclComm_t, ndev: c_int, devlist: *const c_int) -> Result<Vec<usize>> {
    const CALL: &str = "ncclCommInitAll";
    if comms.is_null() {
        return Err(Refusal::null(CALL, "comms"));
    }
    let count = usize::try_from(ndev)
        .map_err(|_| Refusal::argument(format!("Invalid device count requested : {ndev}")))?;
    // Numbers are those among the devices that are visible.
    let available = crate::cuda::visible()?;
    let mut devices = Vec::new();
    for index in 0..count {
        let device = match devlist.is_null() {
            true => index as c_int,
            // SAFETY: the caller's array has an entry for each device.
            false => unsafe { devlist.wrapping_add(index).read() },
        };
        let device = usize::try_from(device).ok().and_then(|device| available.get(device));
        let Some(&device) = device else {
            return Err(Refusal::argument(format!(
                "{CALL} : invalid device in place {index}, there are {}",
                available.len()
            )));
        };
        if devices.contains(&device) {
            return Err(Refusal::usage(format!("{CALL} : device {device} is listed twice")));
        }
        devices.push(device);
    }
    Ok(devices)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_host_and_a_port() {
        for good in ["10.0.0.1:5000", "[::1]:80", "node:1"] {
            assert!(is_address(good), "{good}");
        }
        for bad in ["", "node", ":80", "node:", "node:99999"] {
            assert!(!is_address(bad), "{bad}");
        }
    }
}
