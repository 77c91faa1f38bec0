//! The host functions of the device headers, and what only RCCL has.
//!
//! They serve kernels, which the mock does not run: all but the teams are refused. A team is which
//! ranks a kernel can reach, and on the mock that is everybody by everybody.
#![expect(non_snake_case, reason = "C names stay C names, as in the device headers")]

use std::ffi::c_int;

use collectives_nccl_abi::{ncclComm_t, ncclResult_t};

use super::{comm::Comm, refusal::answer, unsupported};

/// Ranks in equal steps of a communicator: `nccl_device/core.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ncclTeam_t {
    /// Number of ranks.
    pub nRanks: c_int,
    /// This rank's place in it.
    pub rank: c_int,
    /// From one place to the next, in ranks of the communicator.
    pub stride: c_int,
}

/// All ranks of a communicator; nobody, where it is none.
fn everybody(call: &str, comm: ncclComm_t) -> ncclTeam_t {
    let int = |value: usize| c_int::try_from(value).unwrap_or(c_int::MAX);
    Comm::of(call, comm).map_or_else(
        |refusal| {
            // The function has no code to give back.
            let _ = refusal.report();
            ncclTeam_t::default()
        },
        |comm| {
            let state = comm.lock();
            ncclTeam_t { nRanks: int(state.size), rank: int(state.rank), stride: 1 }
        },
    )
}

/// This rank alone.
const ALONE: ncclTeam_t = ncclTeam_t { nRanks: 1, rank: 0, stride: 1 };

export! {
    nccl, on_panic = ncclTeam_t::default();

    /// All ranks.
    fn ncclTeamWorld(comm: ncclComm_t) -> ncclTeam_t {
        everybody("TeamWorld", comm)
    }

    /// The ranks that loads and stores reach: all.
    fn ncclTeamLsa(comm: ncclComm_t) -> ncclTeam_t {
        everybody("TeamLsa", comm)
    }

    /// The ranks of the same place in other nodes: there is one node.
    fn ncclTeamRail(_comm: ncclComm_t) -> ncclTeam_t {
        ALONE
    }

    /// The ranks that counted writes reach: none but this one.
    fn ncclTeamCft(_comm: ncclComm_t) -> ncclTeam_t {
        ALONE
    }

    /// The ranks that counted multicast writes reach: none but this one.
    fn ncclTeamCftMultimem(_comm: ncclComm_t) -> ncclTeam_t {
        ALONE
    }
}

export! {
    nccl, on_panic = -1;

    /// The rank in the communicator of a place in a team.
    fn ncclTeamRankToWorld(comm: ncclComm_t, team: ncclTeam_t, rank: c_int) -> c_int {
        let world = everybody("TeamRankToWorld", comm);
        world.rank + (rank - team.rank) * team.stride
    }

    /// The place in the team of all ranks of a place in another one.
    fn ncclTeamRankToLsa(comm: ncclComm_t, team: ncclTeam_t, rank: c_int) -> c_int {
        let world = everybody("TeamRankToLsa", comm);
        world.rank + (rank - team.rank) * team.stride
    }

    /// Slots that an all-to-all of small messages needs: none, as it is refused.
    fn ncclLLA2ACalcSlots(_max_elements: c_int, _max_element_size: c_int) -> c_int {
        0
    }
}

/// Exports functions that are refused, whatever they are given: C callers clean up their own
/// arguments, so none need be named.
macro_rules! refused {
    ($twins:ident: $($name:ident)*) => {
        export! {
            $twins, on_panic = ncclResult_t::INTERNAL_ERROR;
            $(
                /// Refused: the mock runs no kernels.
                fn $name() -> ncclResult_t {
                    answer(|| Err(unsupported(stringify!($name))))
                }
            )*
        }
    };
}

refused! { nccl:
    ncclCommQueryProperties
    ncclDevCommCreate
    ncclDevCommDestroy
    ncclGetCftDeviceLeInfo
    ncclGetLsaDevicePointer
    ncclGetLsaMultimemDevicePointer
    ncclGetMultimemDeviceLeInfo
    ncclGetMultimemDevicePointer
    ncclGetPeerDeviceLeInfo
    ncclGetPeerDevicePointer
    ncclGinBarrierCreateRequirement
    ncclGinInboxA2ACreateRequirement
    ncclGinOutboxCreateRequirement
    ncclLLA2ACreateRequirement
    ncclLsaBarrierCreateRequirement
}

refused! { plain:
    mscclLoadAlgo
    mscclRunAlgo
    mscclUnloadAlgo
    ncclCommInitRankMulti
    rcclGetAlgoInfo
    rcclGetAlgoName
    rcclGetProtocolName
}
