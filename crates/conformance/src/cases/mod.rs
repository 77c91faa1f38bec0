//! Every case, in one list: a backend gets them all.

mod capabilities;
mod capture;
mod condemn;
mod config;
mod data;
mod device;
mod ext;
mod group;
mod grow;
mod join;
mod lifecycle;
mod memory;
mod misuse;
mod one_sided;
mod one_thread;
mod peers;
mod revoke;
mod shrink;
mod split;
mod streams;
mod suspend;
mod windows;

use collectives_core::Backend;

use crate::{
    check::Outcome,
    ctx::Ctx,
    inputs::Reduction,
    number::BASIC,
    plan::Collective,
    suite::Need::{self, Capability, Devices, Fp8Reduction, OwnershipChecks, Ranks, Release},
};

/// A case, as every rank runs it.
pub(crate) type Run<B> = for<'a, 'w> fn(&'a Ctx<'w, B>) -> Outcome;

/// One case: a statement about every backend, and what it cannot be tried without.
pub(crate) struct Case<B: Backend> {
    pub(crate) name: &'static str,
    pub(crate) needs: &'static [Need],
    pub(crate) run: Run<B>,
}

/// Reads `group::name [needs]: function;`. Without a function, it is the one of that path.
macro_rules! list {
    ($list:ident: $($group:ident::$name:ident $([$($need:expr),*])? $(: $run:expr)?;)*) => {
        $list.extend([$(Case {
            name: concat!(stringify!($group), "::", stringify!($name)),
            needs: &[$($($need),*)?],
            run: list!(@run $group::$name $(, $run)?),
        }),*]);
    };
    (@run $group:ident::$name:ident, $run:expr) => { $run };
    (@run $group:ident::$name:ident) => { |ctx| $group::$name(ctx) };
}

/// The cases of an operation that reduces.
macro_rules! reducing {
    ($list:ident: $($group:ident $collective:ident;)*) => {$(list! { $list:
        $group::sum_matches_oracle [Capability(stringify!($group))]:
            |ctx| data::small(ctx, Collective::$collective, &BASIC, &[Reduction::Sum]);
        $group::product_matches_oracle [Capability(stringify!($group))]:
            |ctx| data::small(ctx, Collective::$collective, &BASIC, &[Reduction::Prod]);
        $group::max_matches_oracle [Capability(stringify!($group))]:
            |ctx| data::small(ctx, Collective::$collective, &BASIC, &[Reduction::Max]);
        $group::min_matches_oracle [Capability(stringify!($group))]:
            |ctx| data::small(ctx, Collective::$collective, &BASIC, &[Reduction::Min]);
        $group::average_matches_oracle [Capability(stringify!($group)), AVG]:
            |ctx| data::small(ctx, Collective::$collective, &BASIC, &[Reduction::Avg]);
        $group::pre_mul_sum_by_a_host_scalar_matches_oracle
            [Capability(stringify!($group)), PRE_MUL_SUM]:
            |ctx| data::small(ctx, Collective::$collective, &BASIC, &[Reduction::PreMulHost]);
        $group::pre_mul_sum_by_a_device_scalar_matches_oracle
            [Capability(stringify!($group)), PRE_MUL_SUM]:
            |ctx| data::small(ctx, Collective::$collective, &BASIC, &[Reduction::PreMulDevice]);
        $group::bf16_matches_oracle [Capability(stringify!($group)), BF16, AVG, PRE_MUL_SUM]:
            |ctx| data::small(ctx, Collective::$collective, &data::BF16, &Reduction::ALL);
        $group::fp8_matches_oracle [Capability(stringify!($group)), Fp8Reduction, AVG, PRE_MUL_SUM]:
            |ctx| data::small(ctx, Collective::$collective, &data::FP8, &Reduction::ALL);
        $group::fp8_can_be_scaled [Capability(stringify!($group)), Fp8Reduction, PRE_MUL_SUM]:
            |ctx| data::fp8_can_be_scaled(ctx, Collective::$collective);
        $group::large_buffers_match_oracle [Capability(stringify!($group))]:
            |ctx| data::large(ctx, Collective::$collective, &BASIC, &data::COMMON);
        $group::large_buffers_of_small_floats_match_oracle
            [Capability(stringify!($group)), Fp8Reduction, BF16, AVG, PRE_MUL_SUM]:
            |ctx| data::large(ctx, Collective::$collective, &data::SMALL_FLOATS, &Reduction::ALL);
        $group::buffers_may_start_at_any_element [Capability(stringify!($group))]:
            |ctx| data::unaligned(ctx, Collective::$collective, &[Reduction::Sum]);
        $group::nan_loses_against_a_number [Capability(stringify!($group))]:
            |ctx| data::nan_loses_against_a_number(ctx, Collective::$collective);
    })*};
}

/// The cases of an operation that only moves.
macro_rules! moving {
    ($list:ident: $($group:ident $collective:ident;)*) => {$(list! { $list:
        $group::every_dtype_arrives [Capability(stringify!($group))]:
            |ctx| data::small(ctx, Collective::$collective, &BASIC, &[]);
        $group::bf16_arrives [Capability(stringify!($group)), BF16]:
            |ctx| data::small(ctx, Collective::$collective, &data::BF16, &[]);
        $group::fp8_arrives [Capability(stringify!($group)), F8E4M3, F8E5M2]:
            |ctx| data::small(ctx, Collective::$collective, &data::FP8, &[]);
        $group::large_buffers_arrive [Capability(stringify!($group))]:
            |ctx| data::large(ctx, Collective::$collective, &BASIC, &[]);
        $group::buffers_may_start_at_any_element [Capability(stringify!($group))]:
            |ctx| data::unaligned(ctx, Collective::$collective, &[]);
    })*};
}

pub(crate) fn cases<B: Backend>() -> Vec<Case<B>> {
    let mut list = Vec::new();
    reducing! { list:
        all_reduce AllReduce;
        reduce Reduce;
        reduce_scatter ReduceScatter;
    }
    moving! { list:
        all_gather AllGather;
        all_to_all AllToAll;
        broadcast Broadcast;
        gather Gather;
        scatter Scatter;
    }
    list! { list:
        data::every_rank_receives_the_same_bits;
        data::buffers_given_off_root_are_ignored [GATHER, SCATTER];
        data::null_pointers_are_fine_for_no_elements [ALL_TO_ALL, GATHER, SCATTER];

        peers::every_dtype_arrives [Ranks(2)];
        peers::small_floats_arrive [Ranks(2), BF16, F8E4M3, F8E5M2];
        peers::large_messages_arrive [Ranks(2)];
        peers::messages_match_in_the_order_of_issue [Ranks(2)];
        peers::messages_without_elements_match_too [Ranks(2)];
        peers::every_pair_exchanges_in_one_group;
        peers::a_message_to_oneself_arrives;
        peers::a_message_to_oneself_outside_a_group_is_refused;
        peers::a_message_to_oneself_without_its_receive_is_refused;

        ext::all_gather_v_matches_oracle;
        ext::all_gather_v_works_in_place;
        ext::reduce_scatter_v_matches_oracle;
        ext::all_to_all_v_matches_oracle;
        ext::gather_v_matches_oracle;
        ext::scatter_v_matches_oracle;
        ext::no_elements_at_all_are_fine;
        ext::send_recv_turns_a_ring;
        ext::a_batch_progresses_together;
        ext::a_barrier_holds_every_stream;
        ext::warm_up_can_be_repeated;
        ext::composites_stand_inside_a_group;
        ext::counts_that_do_not_fit_are_refused;

        group::different_operations_start_together;
        group::raw_calls_make_a_group;
        group::nested_groups_start_at_the_outermost_end;
        group::an_empty_group_does_nothing;
        group::a_failing_closure_launches_nothing;
        group::an_unwinding_closure_launches_nothing;
        group::an_ignored_refusal_launches_nothing;
        group::a_refusal_in_an_inner_group_drops_the_outer;
        group::the_first_refusal_is_returned;
        group::a_dropped_group_of_two_communicators_launches_nothing;
        group::an_end_without_a_start_is_refused;
        group::two_communicators_share_a_group;
        group::a_simulated_group_launches_nothing [GROUP_SIMULATE];
        group::an_operator_may_be_destroyed_before_the_group_ends [PRE_MUL_SUM];
        group::composites_of_a_dropped_group_launch_nothing;

        one_thread::drives_all_ranks [Devices, JOIN_ALL];
        one_thread::drops_a_group_of_all_ranks [Devices, JOIN_ALL];
        one_thread::exchanges_between_its_ranks [Devices, JOIN_ALL];
        one_thread::is_refused_impossible_device_lists [JOIN_ALL];

        split::two_colours_make_two_communicators [SPLIT];
        split::keys_reverse_the_order [SPLIT];
        split::no_colour_takes_no_part [SPLIT];
        split::parent_and_children_work_in_turn [SPLIT];
        split::children_outlive_their_parent [SPLIT];
        split::a_child_can_be_split_again [SPLIT];
        split::blocks_and_stripes_of_every_size [SPLIT];
        split::split_dyn_divides_as_split_does [SPLIT];
        split::inside_a_group_it_is_refused [SPLIT];

        shrink::the_ranks_that_stay_close_the_gaps [SHRINK, Ranks(2)];
        shrink::several_ranks_are_left_out_in_any_order [SHRINK, Ranks(3)];
        shrink::parent_and_child_work_in_turn [SHRINK, Ranks(2)];
        shrink::a_child_outlives_its_parent [SHRINK, Ranks(2)];
        shrink::a_child_can_be_shrunk_again [SHRINK, Ranks(3)];
        shrink::shrink_dyn_does_as_shrink [SHRINK, Ranks(2)];
        shrink::an_aborted_child_leaves_its_parent_alone [SHRINK, ABORT, Ranks(2)];
        shrink::a_rank_that_left_is_left_out [SHRINK, Ranks(2)];
        shrink::with_abort_it_drops_what_waits_for_a_lost_rank [SHRINK, ABORT, Ranks(2)];
        shrink::impossible_lists_are_refused [SHRINK];
        shrink::inside_a_group_it_is_refused [SHRINK, Ranks(2)];

        revoke::afterwards_every_call_says_so [REVOKE];
        revoke::pending_operations_end [REVOKE, Ranks(2)];
        revoke::a_revoked_communicator_can_be_shrunk [REVOKE, SHRINK, Ranks(2)];
        revoke::a_lost_rank_is_revoked_and_shrunk_away [REVOKE, SHRINK, ABORT, Ranks(2)];
        revoke::finalize_abort_and_drop_work_afterwards [REVOKE, ABORT];
        revoke::other_communicators_are_left_alone [REVOKE];
        revoke::inside_a_group_it_is_refused [REVOKE];

        grow::by_one_rank [GROW, SPLIT, Ranks(2)];
        grow::by_several_ranks [GROW, SPLIT, Ranks(3)];
        grow::any_member_makes_the_id [GROW, SPLIT, Ranks(3)];
        grow::again_and_again [GROW, SPLIT, Ranks(3)];
        grow::the_parent_works_on [GROW, SPLIT, Ranks(2)];
        grow::grow_dyn_does_as_grow [GROW, SPLIT, Ranks(2)];
        grow::a_rank_that_was_left_out_comes_back [GROW, SHRINK, Ranks(2)];
        grow::impossible_sizes_are_refused [GROW];
        grow::an_id_is_made_once [GROW, SPLIT, Ranks(2)];
        grow::inside_a_group_it_is_refused [GROW];

        misuse::wrong_counts_are_refused [ALL_TO_ALL, GATHER, SCATTER];
        misuse::different_dtypes_are_refused [ALL_TO_ALL, GATHER, SCATTER];
        misuse::roots_and_peers_outside_are_refused [GATHER, SCATTER];
        misuse::missing_buffers_on_root_are_refused [GATHER, SCATTER];
        misuse::overlapping_buffers_are_refused [ALL_TO_ALL, GATHER, SCATTER];
        misuse::null_pointers_are_refused [ALL_TO_ALL, GATHER, SCATTER];
        misuse::misaligned_pointers_are_refused [ALL_TO_ALL, GATHER, SCATTER];
        misuse::buffers_past_the_end_of_memory_are_refused [ALL_TO_ALL, GATHER, SCATTER];
        misuse::foreign_operators_are_refused [PRE_MUL_SUM];
        misuse::destroyed_operators_are_refused [PRE_MUL_SUM];
        misuse::operators_of_another_dtype_are_refused [PRE_MUL_SUM];
        misuse::memory_of_another_device_is_refused [OwnershipChecks, Ranks(2)];
        misuse::a_stream_of_another_device_is_refused [OwnershipChecks, Ranks(2)];

        lifecycle::a_communicator_knows_itself;
        lifecycle::finalize_flushes_what_was_enqueued;
        lifecycle::ranks_join_drop_and_join_again;
        lifecycle::many_communicators_live_side_by_side;
        lifecycle::a_communicator_moves_between_threads;
        lifecycle::a_healthy_communicator_reports_no_error;
        lifecycle::after_abort_every_call_says_so [ABORT];
        lifecycle::abort_from_another_thread_frees_a_waiting_rank [ABORT, Ranks(2)];
        lifecycle::abort_frees_an_enqueued_stream [ABORT, Ranks(2)];
        lifecycle::an_abort_handle_outlives_its_communicator [ABORT];
        lifecycle::an_aborted_communicator_leaves_others_alone [ABORT];

        condemn::the_first_reason_is_what_calls_are_told_after_the_abort [ABORT];
        condemn::a_condemned_communicator_can_be_shrunk [REVOKE, SHRINK, Ranks(2)];
        condemn::one_that_has_failed_keeps_its_failure_until_it_is_aborted [REVOKE, ABORT];

        join::a_rank_outside_the_size_is_refused;
        join::a_size_of_zero_is_refused;
        join::a_missing_device_is_refused;
        join::an_id_of_the_wrong_length_is_refused;
        join::ids_differ_and_travel_as_text;
        join::a_deadline_is_no_hindrance [JOIN_DEADLINE];
        join::a_missing_rank_is_a_timeout [JOIN_DEADLINE, Ranks(2)];
        join::a_second_thread_of_one_rank_is_refused [JOIN_DEADLINE, Devices, Ranks(2)];
        join::another_size_is_refused [JOIN_DEADLINE, Devices, Ranks(2)];
        // Older ids are addresses, which come again.
        join::an_id_is_good_for_one_communicator [Release(2, 16, 2)];

        capture::an_all_reduce_is_replayed_with_fresh_inputs [CAPTURE];
        capture::a_grouped_send_and_receive_are_replayed [CAPTURE];
        capture::every_operation_can_be_captured [CAPTURE, ALL_TO_ALL, GATHER, SCATTER];
        capture::two_operations_share_a_graph [CAPTURE];
        capture::groups_operations_and_copies_share_a_graph [CAPTURE];
        capture::two_graphs_are_replayed_by_turns_on_two_streams [CAPTURE];
        capture::memory_is_not_freed_behind_a_capture [CAPTURE];
        capture::nothing_runs_before_the_launch [CAPTURE];
        capture::synchronizing_is_refused_and_the_capture_survives [CAPTURE];
        capture::a_refused_call_leaves_the_capture_intact [CAPTURE];
        capture::a_dropped_group_leaves_the_capture_intact [CAPTURE];
        capture::eager_calls_and_replays_alternate [CAPTURE];
        capture::two_communicators_share_a_captured_stream [CAPTURE];
        capture::two_communicators_on_two_streams_share_a_graph [CAPTURE];
        capture::a_device_scalar_is_read_at_each_replay [CAPTURE, PRE_MUL_SUM];
        capture::copies_are_captured_too [CAPTURE];
        capture::a_graph_may_be_destroyed_while_it_runs [CAPTURE];
        capture::misplaced_begins_and_ends_are_refused [CAPTURE];

        streams::a_call_does_not_wait_for_other_ranks [Ranks(2)];
        streams::an_event_orders_two_streams;
        streams::one_communicator_works_on_two_streams;
        streams::two_communicators_work_on_two_streams;
        streams::buffers_may_be_freed_right_after_the_call;
        streams::freed_memory_is_not_reused_too_early;
        streams::work_on_a_destroyed_stream_still_runs;
        streams::a_wait_gives_up_and_the_work_completes_later [Ranks(2)];
        streams::an_event_behind_waiting_work_is_not_reached [Ranks(2)];
        streams::many_operations_queue_up;

        device::knows_itself;
        device::memory_is_aligned_and_distinct;
        device::copies_round_trip;
        device::copies_reach_other_devices [Ranks(2)];
        device::memset_fills_exactly_its_range;
        device::an_event_never_recorded_holds_nothing;
        device::an_event_is_reached_when_its_stream_has_passed_it;
        device::an_impossible_allocation_is_out_of_memory;
        device::an_ordinal_out_of_range_is_refused;

        config::each_field_works_or_is_refused_by_name [CONFIG];
        config::impossible_values_are_refused [CONFIG];
        config::a_part_has_a_configuration_of_its_own [CONFIG, SPLIT];
        config::several_ids_make_one_communicator [JOIN_MANY_IDS, Ranks(2)];

        config::one_call_has_a_configuration_of_its_own [CALL_CONFIG];
        config::impossible_configurations_of_a_call_are_refused [CALL_CONFIG];
        config::a_group_has_one_cluster_size [CALL_CONFIG];
        config::a_configured_call_is_captured [CALL_CONFIG, CAPTURE];
        config::keys_that_are_too_short_are_refused [Capability("encryption")];

        suspend::a_suspended_communicator_resumes_and_works [SUSPEND];
        suspend::operations_meanwhile_are_refused [SUSPEND];
        suspend::inside_a_group_it_is_refused [SUSPEND];
        suspend::memory_use_adds_up [MEMORY_USE];

        memory::memory_of_the_library_works_unregistered [MEM_ALLOC];
        memory::registered_memory_works [MEM_ALLOC, REGISTER];
        memory::memory_of_the_device_can_be_registered [REGISTER];

        windows::a_window_holds_what_collectives_move [MEM_ALLOC, WINDOW];
        windows::parts_of_a_window_work_at_equal_offsets [MEM_ALLOC, WINDOW];
        windows::graphs_reach_into_windows [MEM_ALLOC, WINDOW, CAPTURE];
        windows::several_windows_live_side_by_side [MEM_ALLOC, WINDOW];
        windows::a_window_knows_its_memory [MEM_ALLOC, WINDOW, Capability("window_ptr")];
        windows::what_is_left_is_gone_with_its_communicator [MEM_ALLOC, WINDOW];
        windows::nothing_cannot_be_registered [WINDOW];
        windows::inside_a_group_it_is_refused [MEM_ALLOC, WINDOW];

        one_sided::what_is_put_arrives_with_its_signal [ONE_SIDED, Ranks(2)];
        one_sided::a_put_waits_for_nobody [ONE_SIDED, Ranks(2)];
        one_sided::signals_count [ONE_SIDED, Ranks(2)];
        one_sided::every_rank_puts_to_every_other [ONE_SIDED, Ranks(2)];
        one_sided::signals_and_messages_do_not_mix [ONE_SIDED, Ranks(2)];
        one_sided::impossible_calls_are_refused [ONE_SIDED];
        one_sided::inside_a_group_it_is_refused [ONE_SIDED, Ranks(2)];

        capabilities::backend_and_communicator_agree;
        capabilities::parameters_have_distinct_names [PARAMETERS];
        capabilities::what_is_missing_is_refused;
    }
    list
}

const ABORT: Need = Capability("abort");
const ALL_TO_ALL: Need = Capability("all_to_all");
const AVG: Need = Capability("reduce_avg");
const BF16: Need = Capability("dtype_bf16");
const CALL_CONFIG: Need = Capability("call_config");
const CAPTURE: Need = Capability("capture");
const CONFIG: Need = Capability("config");
const F8E4M3: Need = Capability("dtype_f8e4m3");
const F8E5M2: Need = Capability("dtype_f8e5m2");
const GATHER: Need = Capability("gather");
const GROUP_SIMULATE: Need = Capability("group_simulate");
const GROW: Need = Capability("grow");
const JOIN_ALL: Need = Capability("join_all");
const JOIN_DEADLINE: Need = Capability("join_deadline");
const JOIN_MANY_IDS: Need = Capability("join_many_ids");
const MEMORY_USE: Need = Capability("memory_use");
const MEM_ALLOC: Need = Capability("mem_alloc");
const ONE_SIDED: Need = Capability("put_signal");
const PARAMETERS: Need = Capability("parameters");
const PRE_MUL_SUM: Need = Capability("reduce_pre_mul_sum");
const REGISTER: Need = Capability("register");
const REVOKE: Need = Capability("revoke");
const SCATTER: Need = Capability("scatter");
const SUSPEND: Need = Capability("suspend");
const WINDOW: Need = Capability("window_register");
const SHRINK: Need = Capability("shrink");
const SPLIT: Need = Capability("split");
